variable "name" {
  description = "Name of the cluster, as in its ray-cluster-name tags."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,29}$", var.name))
    error_message = "name: 2 to 30 lower-case letters, digits and dashes, starting with a letter."
  }
}

variable "bucket_arn" {
  description = "The cluster's bucket."
  type        = string
}

variable "prefixes" {
  description = "Folders of the bucket that jobs read and write; null for those of modules/bucket_access."
  type        = list(string)
  default     = null
}

variable "parameter_arns" {
  description = "The SSM parameters that nodes read at boot: the cluster's token and, with TLS, its authority."
  type        = list(string)
  validation {
    condition     = length(var.parameter_arns) > 0 && alltrue([for arn in var.parameter_arns : can(regex("^arn:aws[a-z-]*:ssm:[a-z0-9-]+:[0-9]{12}:parameter/[A-Za-z0-9_./-]+$", arn))])
    error_message = "parameter_arns: ARNs of single parameters, without a star."
  }
}

variable "image_repository_arn" {
  description = "ECR repository of the image; null where it is public."
  type        = string
  default     = null
  validation {
    condition     = var.image_repository_arn == null || can(regex("^arn:aws[a-z-]*:ecr:[a-z0-9-]+:[0-9]{12}:repository/[a-z0-9_./-]+$", var.image_repository_arn))
    error_message = "image_repository_arn: the ARN of one ECR repository, or null."
  }
}

variable "kms_key_arn" {
  description = "The bucket's customer key, or null."
  type        = string
  default     = null
}

variable "instance_types" {
  description = "Every type that a worker group names, and nothing else: what the head may start."
  type        = set(string)
  validation {
    condition     = length(var.instance_types) > 0 && alltrue([for t in var.instance_types : can(regex("^[a-z0-9-]+\\.[a-z0-9-]+$", t))])
    error_message = "instance_types: full names such as g6e.2xlarge; a star would let the head start anything."
  }
}

variable "subnet_ids" {
  description = "Where workers may start."
  type        = list(string)
  validation {
    condition     = length(var.subnet_ids) > 0
    error_message = "subnet_ids: name at least one."
  }
}

variable "security_group_id" {
  description = "The group of the cluster."
  type        = string
}

variable "capacity_reservation_ids" {
  description = "Capacity blocks that workers may start in."
  type        = list(string)
  default     = []
}

variable "permissions_boundary_arn" {
  description = "A boundary that the account asks of every role, or null."
  type        = string
  default     = null
}
