# A way out to the internet, one NAT gateway in the first zone: cheaper than one a zone, and a batch cluster can wait.

locals {
  nat = var.egress == "nat" ? 1 : 0
}

resource "aws_internet_gateway" "this" {
  count  = local.nat
  vpc_id = local.vpc_id
  tags   = { Name = var.name }
}

resource "aws_subnet" "public" {
  count                   = local.nat
  vpc_id                  = local.vpc_id
  availability_zone       = local.first
  cidr_block              = cidrsubnet(var.cidr_block, 8, 255)
  map_public_ip_on_launch = false
  tags                    = { Name = "${var.name}-nat" }
}

resource "aws_route_table" "public" {
  count  = local.nat
  vpc_id = local.vpc_id
  tags   = { Name = "${var.name}-nat" }
}

resource "aws_route" "out" {
  count                  = local.nat
  route_table_id         = aws_route_table.public[0].id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.this[0].id
}

resource "aws_route_table_association" "public" {
  count          = local.nat
  subnet_id      = aws_subnet.public[0].id
  route_table_id = aws_route_table.public[0].id
}

resource "aws_eip" "nat" {
  #checkov:skip=CKV2_AWS_19:belongs to the NAT gateway, not to an instance
  count      = local.nat
  domain     = "vpc"
  tags       = { Name = "${var.name}-nat" }
  depends_on = [aws_internet_gateway.this]
}

resource "aws_nat_gateway" "this" {
  count         = local.nat
  subnet_id     = aws_subnet.public[0].id
  allocation_id = aws_eip.nat[0].id
  tags          = { Name = var.name }
}

resource "aws_route" "nat" {
  count                  = local.nat
  route_table_id         = aws_route_table.private[0].id
  destination_cidr_block = "0.0.0.0/0"
  nat_gateway_id         = aws_nat_gateway.this[0].id
}
