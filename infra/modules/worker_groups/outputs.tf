output "groups" {
  description = "Every group by name, with `ray_resources`, `ray_labels` and `variants`."
  value       = local.groups

  precondition {
    condition     = local.total_gpus <= var.max_gpus
    error_message = "worker_groups may start ${local.total_gpus} GPUs, max_gpus allows ${var.max_gpus}: lower a group's max, or raise max_gpus knowingly."
  }
}

output "total_gpus" {
  description = "GPUs when every group is at its max."
  value       = local.total_gpus
}

output "max_workers" {
  description = "Nodes when every group is at its max."
  value       = sum(var.worker_groups[*].max)
}

output "instance_types" {
  description = "Every instance type that may be started: what the head's role is allowed to run."
  value       = sort(distinct(flatten(var.worker_groups[*].instance_types)))
}
