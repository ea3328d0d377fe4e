output "name" {
  value = var.name
}

output "region" {
  value = var.region
}

output "bucket" {
  value = module.storage.bucket
}

output "bucket_uri" {
  value = module.storage.bucket_uri
}

output "head_instance_id" {
  value = module.head.instance_id
}

output "job_address" {
  description = "Of the Jobs API, while the port forward runs."
  value       = "http://127.0.0.1:8265"
}

output "port_forward_command" {
  description = "Brings the head's port 8265 to this machine; needs the AWS CLI and its Session Manager plugin."
  value       = "aws ssm start-session --region ${var.region} --target ${module.head.instance_id} --document-name AWS-StartPortForwardingSession --parameters '{\"portNumber\":[\"8265\"],\"localPortNumber\":[\"8265\"]}'"
}

output "submit_env" {
  description = "What must be set where jobs are submitted: names, and never the token."
  value       = { RAY_AUTH_MODE = "token", RAY_AUTH_TOKEN_PATH = "file with the token" }
}

output "start_command" {
  description = "Wakes a head that stopped itself."
  value       = "aws ec2 start-instances --region ${var.region} --instance-ids ${module.head.instance_id}"
}

output "cluster_yaml" {
  description = "What the autoscaler reads."
  value       = module.render.cluster_yaml
}

output "groups" {
  value = module.groups.groups
}

output "total_gpus" {
  description = "GPUs if every group is at its maximum."
  value       = module.groups.total_gpus
}

output "worker_role_arn" {
  description = "For policies of other buckets that jobs may read."
  value       = module.identity.worker_role_arn
}

output "teardown_command" {
  value = "infra/teardown.sh infra/stacks/aws-ec2"
}
