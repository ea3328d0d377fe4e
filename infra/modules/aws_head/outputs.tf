output "instance_id" {
  value = aws_instance.head.id
}

output "config_uri" {
  value = "s3://${var.bucket}/${var.config_key}"
}

output "token_parameter" {
  value = aws_ssm_parameter.token.name
}

output "ca_parameter" {
  value = one(aws_ssm_parameter.ca[*].name)
}

output "parameter_arns" {
  description = "What nodes read at boot."
  value       = concat([aws_ssm_parameter.token.arn], aws_ssm_parameter.ca[*].arn)
}
