output "vpc_id" {
  value = local.vpc_id
}

output "subnet_ids" {
  description = "Private subnets in the order of preference."
  value       = local.own ? [for zone in var.availability_zones : aws_subnet.private[zone].id] : var.subnet_ids
}

output "security_group_id" {
  value = aws_security_group.cluster.id
}
