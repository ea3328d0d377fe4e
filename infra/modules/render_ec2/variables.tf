variable "name" {
  description = "Cluster name: the tag `ray-cluster-name` of everything that it starts."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,30}$", var.name))
    error_message = "name: lower-case letters, digits and '-', 2 to 31, a letter first."
  }
}

variable "region" {
  type = string
  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region: e.g. eu-central-1."
  }
}

variable "image" {
  description = "Container image of every node, by digest: the same bits on all of them, next month too."
  type        = string
  validation {
    condition     = can(regex("^[^@ ]+@sha256:[0-9a-f]{64}$", var.image))
    error_message = "image is named by digest: registry/repository@sha256:<64 hex digits>."
  }
}

variable "ami_id" {
  description = "Machine image with Docker, the NVIDIA container toolkit, the AWS CLI and the SSM agent."
  type        = string
  validation {
    condition     = can(regex("^ami-[0-9a-f]{8,17}$", var.ami_id))
    error_message = "ami_id: an id such as ami-0123456789abcdef0."
  }
}

variable "groups" {
  description = "Output `groups` of the module worker_groups."
  type        = any
}

variable "max_workers" {
  type = number
}

variable "subnet_ids" {
  description = "Private subnets, tried in this order."
  type        = list(string)
  validation {
    condition     = length(var.subnet_ids) > 0
    error_message = "subnet_ids is empty: workers need at least one private subnet."
  }
}

variable "security_group_ids" {
  type = list(string)
}

variable "worker_instance_profile_arn" {
  type = string
}

variable "head_private_ip" {
  description = "Fixed address of the head inside the network: where workers find it."
  type        = string
  validation {
    condition     = can(cidrhost("${var.head_private_ip}/32", 0))
    error_message = "head_private_ip: an IPv4 address."
  }
}

variable "config_uri" {
  description = "s3:// object with the cluster's YAML. The head reads it each minute: a change of groups needs no new head."
  type        = string
  validation {
    condition     = can(regex("^s3://[^/]+/.+$", var.config_uri))
    error_message = "config_uri: s3://bucket/key."
  }
}

variable "token_parameter" {
  description = "Name of the SSM parameter (SecureString) with Ray's token. Nodes read it when they boot; it is in no file here."
  type        = string
  validation {
    condition     = startswith(var.token_parameter, "/")
    error_message = "token_parameter: a path such as /pathryoshka/ray-token."
  }
}

variable "idle_timeout_minutes" {
  description = "After which an idle worker is ended."
  type        = number
  default     = 10
  validation {
    condition     = var.idle_timeout_minutes >= 1 && var.idle_timeout_minutes <= 120
    error_message = "idle_timeout_minutes: 1 to 120; a forgotten GPU costs as much as a busy one."
  }
}

variable "head_idle_shutdown_minutes" {
  description = "After which a head without jobs and workers powers itself off; the autoscaler never does. 0 = never."
  type        = number
  default     = 60
  validation {
    condition     = var.head_idle_shutdown_minutes == 0 || var.head_idle_shutdown_minutes >= 10
    error_message = "head_idle_shutdown_minutes: 0, or at least 10."
  }
}

variable "placement_group" {
  description = "Cluster placement group of student nodes, null = none."
  type        = string
  default     = null
}

variable "tls" {
  description = "TLS between nodes (RAY_USE_TLS): for networks shared with others. Each node signs its own certificate when it boots."
  type        = bool
  default     = false
}

variable "ca_parameter" {
  description = "With tls: the SSM parameter with the authority's PEM key and certificate."
  type        = string
  default     = null
  validation {
    condition     = !var.tls || var.ca_parameter != null
    error_message = "ca_parameter: with tls, where the authority's key and certificate are kept."
  }
}

variable "tags" {
  type    = map(string)
  default = {}
}
