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

output "head_private_ip" {
  description = "In the first subnet, whose first four addresses AWS keeps for itself."
  value       = local.own ? cidrhost(cidrsubnet(var.cidr_block, 4, 0), 10) : var.head_private_ip
}
