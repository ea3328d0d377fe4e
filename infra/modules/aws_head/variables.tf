variable "name" {
  description = "Name of the cluster: workers carry it in their ray-cluster-name tag."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,29}$", var.name))
    error_message = "name: 2 to 30 lower-case letters, digits and dashes, starting with a letter."
  }
}

variable "ami_id" {
  description = "Image of the machine: x86_64, with Docker, the AWS CLI and Session Manager's agent."
  type        = string
  validation {
    condition     = can(regex("^ami-[0-9a-f]{8,17}$", var.ami_id))
    error_message = "ami_id: one fixed image such as ami-0123456789abcdef0; \"latest\" would replace the head by itself."
  }
}

variable "instance_type" {
  description = "Type of the head, on demand. It runs Ray's control plane and the drivers of jobs, and no tasks."
  type        = string
  default     = "m7i.xlarge"
  validation {
    condition     = can(regex("^[a-z0-9-]+\\.[a-z0-9-]+$", var.instance_type))
    error_message = "instance_type: a full name such as m7i.xlarge."
  }
  validation {
    condition     = !can(regex("^(p|g|gr|trn|inf|dl)[0-9]", var.instance_type))
    error_message = "instance_type: the head takes no accelerator; it would be paid for day and night and never used."
  }
  validation {
    condition     = !can(regex("\\.(nano|micro|small|medium)$", var.instance_type))
    error_message = "instance_type: Ray's control plane, its dashboard and a driver need 8 GiB; take a large or bigger."
  }
}

variable "disk_gib" {
  description = "Root disk of the head: the image, Ray's logs, object spilling of drivers."
  type        = number
  default     = 100
  validation {
    condition     = var.disk_gib >= 50 && var.disk_gib <= 2000
    error_message = "disk_gib: 50 to 2000; the container image alone takes 8."
  }
}

variable "subnet_id" {
  description = "A private subnet."
  type        = string
}

variable "private_ip" {
  description = "Address of the head in its subnet."
  type        = string
  validation {
    condition     = can(regex("^(10\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.|192\\.168\\.)[0-9.]+$", var.private_ip)) && can(cidrhost("${var.private_ip}/32", 0))
    error_message = "private_ip: a private IPv4 address such as 10.42.0.10."
  }
}

variable "security_group_id" {
  description = "The group of the cluster."
  type        = string
}

variable "instance_profile" {
  description = "Name of the head's instance profile."
  type        = string
}

variable "user_data" {
  description = "The boot script. It holds no secret and no list of workers: both are fetched, so a new one replaces nothing."
  type        = string
  validation {
    condition     = length(var.user_data) <= 16384
    error_message = "user_data: EC2 takes 16 KB at most."
  }
}

variable "cluster_yaml" {
  description = "The autoscaler's config; the head reads it from the bucket, again and again."
  type        = string
  validation {
    condition     = can(yamldecode(var.cluster_yaml).available_node_types)
    error_message = "cluster_yaml: Ray's cluster config as YAML, with available_node_types."
  }
}

variable "bucket" {
  description = "The cluster's bucket."
  type        = string
}

variable "config_key" {
  description = "Where in the bucket the config lies."
  type        = string
  default     = "config/cluster.yaml"
  validation {
    condition     = can(regex("^config/[a-z0-9_.-]+$", var.config_key))
    error_message = "config_key: below config/, which jobs cannot write."
  }
}

variable "kms_key_arn" {
  description = "A customer key for the disk and the token; null uses the account's own."
  type        = string
  default     = null
}

variable "ray_token" {
  description = "The cluster's token. Ephemeral: it goes into a parameter store and into no state, plan or log."
  type        = string
  ephemeral   = true
  sensitive   = true
  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{32,}$", var.ray_token))
    error_message = "ray_token: at least 32 letters, digits, dashes and underscores; make one with `ray get-auth-token --generate`."
  }
}

variable "ray_token_version" {
  description = "Raise it to send a new token: Terraform keeps none and so cannot see that it changed."
  type        = number
  default     = 1
  validation {
    condition     = var.ray_token_version >= 1 && floor(var.ray_token_version) == var.ray_token_version
    error_message = "ray_token_version: a whole number, 1 or more."
  }
}

variable "tls" {
  description = "Whether nodes talk TLS among themselves; needs ray_ca."
  type        = bool
  default     = false
}

variable "ray_ca" {
  description = "With tls: the PEM key and certificate of an authority made for this cluster, one after the other. Ephemeral."
  type        = string
  ephemeral   = true
  sensitive   = true
  default     = ""
  validation {
    condition     = var.tls == can(regex("-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*)-----BEGIN CERTIFICATE-----", var.ray_ca))
    error_message = "ray_ca: with tls a PEM key followed by its certificate, and without tls nothing."
  }
}
