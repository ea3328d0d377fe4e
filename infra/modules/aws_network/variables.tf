variable "name" {
  description = "Name of the cluster; prefix of everything that is made."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,29}$", var.name))
    error_message = "name: 2 to 30 lower-case letters, digits and dashes, starting with a letter."
  }
}

variable "vpc_id" {
  description = "An existing VPC to stand in; null makes one."
  type        = string
  default     = null
  validation {
    condition     = var.vpc_id == null || can(regex("^vpc-[0-9a-f]+$", var.vpc_id))
    error_message = "vpc_id: an id like vpc-0abc, or null for a VPC of the cluster's own."
  }
}

variable "subnet_ids" {
  description = "Existing private subnets, in the order in which instances try them; only with vpc_id."
  type        = list(string)
  default     = []
  validation {
    condition     = (var.vpc_id == null) == (length(var.subnet_ids) == 0)
    error_message = "subnet_ids: name them together with vpc_id, or leave both out."
  }
}

variable "cidr_block" {
  description = "Addresses of an own VPC; a /20 subnet is cut from it for each availability zone."
  type        = string
  default     = "10.42.0.0/16"
  validation {
    condition     = can(regex("^(10\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.|192\\.168\\.)[0-9.]+/16$", var.cidr_block)) && can(cidrhost(var.cidr_block, 0))
    error_message = "cidr_block: a private /16, such as 10.42.0.0/16."
  }
}

variable "availability_zones" {
  description = "Zones of an own VPC, the preferred one first: not every zone has every GPU."
  type        = list(string)
  default     = []
  validation {
    condition     = (var.vpc_id == null) == (length(var.availability_zones) > 0) && length(var.availability_zones) <= 6
    error_message = "availability_zones: name 1 to 6 zones for an own VPC, and none together with vpc_id."
  }
  validation {
    condition     = length(distinct(var.availability_zones)) == length(var.availability_zones)
    error_message = "availability_zones: a zone is named twice."
  }
}

variable "egress" {
  description = <<-EOT
    How instances reach what is outside: "endpoints" (AWS services only, no way to the internet: image in ECR, weights
    in the bucket), "nat" (the internet over HTTPS too) or "existing" (an existing VPC has its own way out).
  EOT
  type        = string
  default     = "endpoints"
  validation {
    condition     = contains(["endpoints", "nat", "existing"], var.egress)
    error_message = "egress: one of endpoints, nat, existing."
  }
  validation {
    condition     = (var.egress == "existing") == (var.vpc_id != null)
    error_message = "egress: \"existing\" belongs to an existing vpc_id; an own VPC takes endpoints or nat."
  }
}

variable "head_private_ip" {
  description = "The head's address in the first of existing subnets; an own VPC has one for it."
  type        = string
  default     = null
  validation {
    condition     = (var.vpc_id == null) == (var.head_private_ip == null)
    error_message = "head_private_ip: a free address in the first of subnet_ids, and none for an own VPC."
  }
}
