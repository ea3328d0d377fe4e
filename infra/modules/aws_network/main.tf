# A private place for the cluster. Nothing here has a public address but the NAT gateway of `egress = "nat"`, and no
# rule lets anything in but members of the cluster's own security group: people come in through Session Manager.

data "aws_region" "current" {}

locals {
  own       = var.vpc_id == null
  zones     = { for index, zone in var.availability_zones : zone => index }
  vpc_id    = local.own ? aws_vpc.this[0].id : var.vpc_id
  first     = local.own ? var.availability_zones[0] : null
  services  = ["ec2", "ecr.api", "ecr.dkr", "ssm", "ssmmessages"]
  endpoints = var.egress == "endpoints" ? toset(local.services) : toset([])
  # 6.x of the provider calls it region and keeps name; the id is the region's name in both
  region = data.aws_region.current.id
}

resource "aws_vpc" "this" {
  #checkov:skip=CKV2_AWS_11:flow logs bill by volume and the cluster's traffic is terabytes of tiles
  count                = local.own ? 1 : 0
  cidr_block           = var.cidr_block
  enable_dns_support   = true
  enable_dns_hostnames = true
  tags                 = { Name = var.name }
}

# The group that AWS makes lets its members talk; without rules nobody can use it by mistake.
resource "aws_default_security_group" "closed" {
  count  = local.own ? 1 : 0
  vpc_id = aws_vpc.this[0].id
  tags   = { Name = "${var.name}-unused" }
}

resource "aws_subnet" "private" {
  for_each                = local.zones
  vpc_id                  = local.vpc_id
  availability_zone       = each.key
  cidr_block              = cidrsubnet(var.cidr_block, 4, each.value)
  map_public_ip_on_launch = false
  tags                    = { Name = "${var.name}-private-${each.key}" }
}

resource "aws_route_table" "private" {
  count  = local.own ? 1 : 0
  vpc_id = local.vpc_id
  tags   = { Name = "${var.name}-private" }
}

resource "aws_route_table_association" "private" {
  for_each       = aws_subnet.private
  subnet_id      = each.value.id
  route_table_id = aws_route_table.private[0].id
}

# Tiles and features go to and from S3 by terabytes: through a gateway endpoint they cost nothing, through a NAT by the GB.
resource "aws_vpc_endpoint" "s3" {
  count             = local.own ? 1 : 0
  vpc_id            = local.vpc_id
  service_name      = "com.amazonaws.${local.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = [aws_route_table.private[0].id]
  tags              = { Name = "${var.name}-s3" }
}

# One zone only: other zones reach it for a cent a GB, and there is little to carry.
resource "aws_vpc_endpoint" "service" {
  for_each            = local.endpoints
  vpc_id              = local.vpc_id
  service_name        = "com.amazonaws.${local.region}.${each.key}"
  vpc_endpoint_type   = "Interface"
  private_dns_enabled = true
  subnet_ids          = [aws_subnet.private[local.first].id]
  security_group_ids  = [aws_security_group.cluster.id]
  tags                = { Name = "${var.name}-${each.key}" }
}
