output "head_instance_profile" {
  description = "Name of the head's instance profile."
  value       = aws_iam_instance_profile.head.name
  # an instance that boots before its rights are there fails at its first call
  depends_on = [aws_iam_role_policy.head_data, aws_iam_role_policy.head_workers, aws_iam_role_policy.head_session]
}

output "worker_instance_profile_arn" {
  description = "What worker node types name in IamInstanceProfile."
  value       = aws_iam_instance_profile.worker.arn
}

output "head_role_arn" {
  value = aws_iam_role.head.arn
}

output "worker_role_arn" {
  value = aws_iam_role.worker.arn
}
