resource "aws_security_group" "cluster" {
  #checkov:skip=CKV2_AWS_5:attached to the head, to endpoints and, by the autoscaler, to workers
  name        = "${var.name}-cluster"
  description = "Members of the Ray cluster ${var.name}; nobody else comes in"
  vpc_id      = local.vpc_id
  tags        = { Name = "${var.name}-cluster" }
}

# All ports and protocols: Ray picks ports for its workers as it goes, and EFA is a protocol without ports.
resource "aws_vpc_security_group_ingress_rule" "members" {
  security_group_id            = aws_security_group.cluster.id
  description                  = "from members of the cluster"
  ip_protocol                  = "-1"
  referenced_security_group_id = aws_security_group.cluster.id
}

resource "aws_vpc_security_group_egress_rule" "members" {
  security_group_id            = aws_security_group.cluster.id
  description                  = "to members of the cluster"
  ip_protocol                  = "-1"
  referenced_security_group_id = aws_security_group.cluster.id
}

resource "aws_vpc_security_group_egress_rule" "s3" {
  count             = local.own ? 1 : 0
  security_group_id = aws_security_group.cluster.id
  description       = "to S3 through the gateway endpoint"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  prefix_list_id    = aws_vpc_endpoint.s3[0].prefix_list_id
}

resource "aws_vpc_security_group_egress_rule" "https" {
  count             = var.egress == "endpoints" ? 0 : 1
  security_group_id = aws_security_group.cluster.id
  description       = "to the internet, HTTPS only"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_ipv4         = "0.0.0.0/0"
}
