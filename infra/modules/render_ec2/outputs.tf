output "cluster_yaml" {
  description = "What Ray's autoscaler reads on the head."
  value       = yamlencode(local.cluster)

  precondition {
    condition     = alltrue([for name, text in local.worker_user_data : length(text) < 16384])
    error_message = "a worker's user data is larger than the 16 KB that EC2 takes."
  }
}

output "head_user_data" {
  value = local.head_user_data
}

output "worker_user_data" {
  description = "By node type."
  value       = local.worker_user_data
}
