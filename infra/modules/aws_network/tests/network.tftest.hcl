mock_provider "aws" {
  mock_data "aws_region" {
    defaults = { id = "eu-central-1", name = "eu-central-1" }
  }
}

variables {
  name               = "lab"
  availability_zones = ["eu-central-1a", "eu-central-1b"]
}

run "private_by_default" {
  assert {
    condition     = alltrue([for s in values(aws_subnet.private) : !s.map_public_ip_on_launch])
    error_message = "an instance in a private subnet would get a public address"
  }
  assert {
    condition     = length(aws_nat_gateway.this) == 0 && length(aws_internet_gateway.this) == 0
    error_message = "there is a way to the internet that nobody asked for"
  }
  assert {
    condition     = length(aws_vpc_security_group_egress_rule.https) == 0
    error_message = "without a NAT nothing needs to go to 0.0.0.0/0"
  }
  assert {
    condition     = toset(keys(aws_vpc_endpoint.service)) == toset(["ec2", "ecr.api", "ecr.dkr", "ssm", "ssmmessages"])
    error_message = "the head cannot be reached, pull its image or start workers without these endpoints"
  }
  assert {
    condition     = alltrue([for e in values(aws_vpc_endpoint.service) : e.private_dns_enabled])
    error_message = "the SDKs use public names; without private DNS they would not find the endpoints"
  }
  assert {
    condition     = aws_vpc_endpoint.s3[0].vpc_endpoint_type == "Gateway" && one(aws_vpc_endpoint.s3[0].route_table_ids) == aws_route_table.private[0].id
    error_message = "S3 must go through the gateway endpoint of the private subnets"
  }
  assert {
    condition     = output.head_private_ip == "10.42.0.10" && aws_subnet.private["eu-central-1a"].cidr_block == "10.42.0.0/20"
    error_message = "the head's address is not in its subnet"
  }
  assert {
    condition     = length(distinct([for s in values(aws_subnet.private) : s.cidr_block])) == 2
    error_message = "subnets overlap"
  }
}

run "nothing_from_outside_comes_in" {
  assert {
    condition = (
      aws_vpc_security_group_ingress_rule.members.cidr_ipv4 == null
      && aws_vpc_security_group_ingress_rule.members.cidr_ipv6 == null
      && aws_vpc_security_group_ingress_rule.members.prefix_list_id == null
      && aws_vpc_security_group_ingress_rule.members.referenced_security_group_id == aws_security_group.cluster.id
    )
    error_message = "an ingress rule has an address range"
  }
  assert {
    condition     = length(aws_default_security_group.closed) == 1
    error_message = "the VPC's default group still lets its members talk"
  }
}

run "nat" {
  variables { egress = "nat" }
  assert {
    condition     = length(aws_nat_gateway.this) == 1 && length(aws_vpc_endpoint.service) == 0
    error_message = "one NAT gateway instead of endpoints was asked for"
  }
  assert {
    condition     = aws_route.nat[0].route_table_id == aws_route_table.private[0].id && aws_route.out[0].route_table_id == aws_route_table.public[0].id
    error_message = "private subnets must leave through the NAT, the NAT through the internet gateway"
  }
  assert {
    condition     = aws_vpc_security_group_egress_rule.https[0].from_port == 443 && aws_vpc_security_group_egress_rule.https[0].to_port == 443
    error_message = "only HTTPS may leave"
  }
  assert {
    condition     = !contains([for s in values(aws_subnet.private) : s.cidr_block], aws_subnet.public[0].cidr_block) && !aws_subnet.public[0].map_public_ip_on_launch
    error_message = "the NAT's subnet is one of the private ones"
  }
}

run "existing" {
  variables {
    vpc_id             = "vpc-0123"
    subnet_ids         = ["subnet-0b", "subnet-0a"]
    availability_zones = []
    egress             = "existing"
    head_private_ip    = "172.31.0.20"
  }
  assert {
    condition     = length(aws_vpc.this) + length(aws_subnet.private) + length(aws_vpc_endpoint.s3) == 0
    error_message = "an existing network is not to be changed"
  }
  assert {
    condition     = output.vpc_id == "vpc-0123" && join(" ", output.subnet_ids) == "subnet-0b subnet-0a"
    error_message = "the order of the subnets is the order in which instances try them"
  }
}

run "refuses_an_existing_vpc_without_an_address_for_the_head" {
  command = plan
  variables {
    vpc_id             = "vpc-0123"
    subnet_ids         = ["subnet-0a"]
    availability_zones = []
    egress             = "existing"
  }
  expect_failures = [var.head_private_ip]
}

run "refuses_a_public_range" {
  command = plan
  variables { cidr_block = "8.8.0.0/16" }
  expect_failures = [var.cidr_block]
}

run "refuses_subnets_without_their_vpc" {
  command = plan
  variables { subnet_ids = ["subnet-0a"] }
  expect_failures = [var.subnet_ids]
}

run "refuses_no_zone" {
  command = plan
  variables { availability_zones = [] }
  expect_failures = [var.availability_zones]
}

run "refuses_a_zone_twice" {
  command = plan
  variables { availability_zones = ["eu-central-1a", "eu-central-1a"] }
  expect_failures = [var.availability_zones]
}

run "refuses_unknown_egress" {
  command = plan
  variables { egress = "open" }
  expect_failures = [var.egress]
}

run "refuses_a_nat_in_someone_elses_vpc" {
  command = plan
  variables {
    vpc_id             = "vpc-0123"
    subnet_ids         = ["subnet-0a"]
    availability_zones = []
    egress             = "nat"
    head_private_ip    = "172.31.0.20"
  }
  expect_failures = [var.egress]
}

run "refuses_a_name_that_aws_would" {
  command = plan
  variables { name = "Lab_1" }
  expect_failures = [var.name]
}
