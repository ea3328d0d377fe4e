output "bucket_uri" {
  value = module.storage.bucket_uri
}

output "pod_role_arn" {
  value = aws_iam_role.pods.arn
}

output "raycluster_yaml" {
  value = module.render.raycluster_yaml
}

output "rayjob_yaml" {
  value = module.render.rayjob_yaml
}

output "node_pool_yaml" {
  description = "For Karpenter; its GPU limit is max_gpus."
  value       = module.render.node_pool_yaml
}

output "network_policy_yaml" {
  value = module.render.network_policy_yaml
}

output "service_account_yaml" {
  description = "The account that the pods run as; its role comes from Pod Identity, not from an annotation."
  value = yamlencode({
    apiVersion = "v1"
    kind       = "ServiceAccount"
    metadata   = { name = local.service_account, namespace = var.namespace }
  })
}

output "port_forward_command" {
  value = "kubectl -n ${var.namespace} port-forward service/${var.name}-head-svc 8265:8265"
}

output "total_gpus" {
  value = module.groups.total_gpus
}

output "teardown_command" {
  description = "The RayCluster first, or its machines outlive it."
  value       = "kubectl -n ${var.namespace} delete rayjob,raycluster --all --wait && kubectl delete nodepool ${var.name} --wait && terraform -chdir=infra/stacks/aws-eks destroy"
}
