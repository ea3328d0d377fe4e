variable "bucket_arn" {
  description = "The cluster's bucket."
  type        = string
  validation {
    condition     = can(regex("^arn:aws[a-z-]*:s3:::[a-z0-9-]+$", var.bucket_arn))
    error_message = "bucket_arn: the ARN of one bucket, without a path or a star."
  }
}

variable "prefixes" {
  description = "Folders of the bucket that jobs read and write."
  type        = list(string)
  nullable    = false
  default     = ["tiles/", "features/", "runs/", "exports/", "weights/", "cache/"]
  validation {
    condition     = length(var.prefixes) > 0 && alltrue([for p in var.prefixes : can(regex("^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*/$", p))])
    error_message = "prefixes: folders with a slash at their end, such as runs/, and no stars."
  }
  validation {
    condition     = !anytrue([for p in var.prefixes : startswith(p, "config/")])
    error_message = "prefixes: config/ is the autoscaler's; whoever writes it starts machines of any number."
  }
}

variable "kms_key_arn" {
  description = "The bucket's customer key, or null."
  type        = string
  default     = null
}
