# ---------------------------------------------------------------- what and where

variable "name" {
  description = "Name of the cluster; prefix of everything that is made."
  type        = string
}

variable "region" {
  description = "Where it stands."
  type        = string
  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region: such as eu-central-1."
  }
}

variable "worker_groups" {
  description = "The list that drives everything; see modules/worker_groups for its fields."
  type        = any
}

variable "max_gpus" {
  description = "More GPUs than this are refused, whatever the groups add up to."
  type        = number
}


# ---------------------------------------------------------------- network and storage

variable "availability_zones" {
  description = "Zones of an own VPC, the preferred one first; students stand in the first one only."
  type        = list(string)
  default     = []
}

variable "vpc_id" {
  description = "An existing VPC, or null for an own one."
  type        = string
  default     = null
}

variable "subnet_ids" {
  description = "Private subnets of the existing VPC."
  type        = list(string)
  default     = []
}

variable "head_private_ip" {
  description = "A free address in the first of subnet_ids; null for an own VPC."
  type        = string
  default     = null
}

variable "egress" {
  description = "endpoints (AWS only), nat (HTTPS to the internet too) or existing."
  type        = string
  default     = "endpoints"
}

variable "bucket" {
  description = "Name of the bucket, new in all of S3."
  type        = string
}

variable "adopt_bucket" {
  description = "Whether the bucket is one that an earlier teardown kept."
  type        = bool
  default     = false
}

variable "kms_key_arn" {
  description = "A customer key for bucket, disks and token, or null."
  type        = string
  default     = null
}

# ---------------------------------------------------------------- machines

variable "ami_id" {
  description = "Image of all machines: x86_64 with NVIDIA driver, Docker, the AWS CLI and Session Manager's agent."
  type        = string
}

variable "image" {
  description = "Container image by digest: the same Ray and Python as whoever submits."
  type        = string
}

variable "ray_version" {
  description = "Ray in the image."
  type        = string
  default     = "2.60.0"
}

variable "head_instance_type" {
  description = "Type of the head."
  type        = string
  default     = "m7i.xlarge"
}

variable "tls" {
  description = "Whether nodes talk TLS among themselves; then ray_ca holds their authority."
  type        = bool
  default     = false
}

variable "ray_token" {
  description = "The cluster's token; ephemeral. From TF_VAR_ray_token."
  type        = string
  ephemeral   = true
  sensitive   = true
}

variable "ray_token_version" {
  description = "Raise it to send a new token."
  type        = number
  default     = 1
}

variable "ray_ca" {
  description = "PEM key and certificate of the nodes' authority; ephemeral. From TF_VAR_ray_ca."
  type        = string
  ephemeral   = true
  sensitive   = true
  default     = ""
}

# ---------------------------------------------------------------- cost

variable "idle_timeout_minutes" {
  description = "Workers without work end after so long."
  type        = number
  default     = 10
}

variable "head_idle_shutdown_minutes" {
  description = "The head without jobs and workers stops itself after so long."
  type        = number
  default     = 60
}

variable "monthly_budget_usd" {
  description = "See modules/aws_cost."
  type        = number
}

variable "budget_scope" {
  description = "account or cluster."
  type        = string
  default     = "account"
}

variable "alert_emails" {
  description = "Who is told of the budget and of GPUs that never stop."
  type        = list(string)
}

variable "gpu_hours_in_a_row" {
  description = "GPU machines in every one of so many hours raise an alarm; null for none."
  type        = number
  default     = 24
}

variable "night_stop" {
  description = "Stops the head at this time whatever runs; null for never."
  type        = object({ cron = string, timezone = string })
  default     = null
}
