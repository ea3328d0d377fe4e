output "raycluster_yaml" {
  value = yamlencode(local.cluster)

  precondition {
    condition     = var.platform != "gke" || alltrue([for g in var.groups : g.gpus == 0 || contains(keys(var.gke_accelerators), coalesce(g.accelerator, "-"))])
    error_message = "gke_accelerators lacks a group's accelerator: add GKE's name of it."
  }
}

output "rayjob_yaml" {
  value = local.job == null ? null : yamlencode(local.job)
}

output "network_policy_yaml" {
  value = yamlencode(local.network_policy)
}

output "node_pool_yaml" {
  description = "For Karpenter (platform eks), null elsewhere."
  value       = var.platform == "eks" ? yamlencode(local.node_pool) : null
}
