variable "bucket" {
  description = "Name of the bucket: tiles, features, runs and the cluster's config live in it."
  type        = string
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "bucket: 3 to 63 lower-case letters, digits and dashes; dots break TLS."
  }
}

variable "kms_key_arn" {
  description = "A customer key for everything in the bucket; null encrypts with S3's own."
  type        = string
  default     = null
  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+$", var.kms_key_arn))
    error_message = "kms_key_arn: the ARN of a key (not of an alias), or null."
  }
}

variable "cache_prefix" {
  description = "What lies below it may be made again and is deleted after cache_days."
  type        = string
  default     = "cache/"
  validation {
    condition     = can(regex("^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*/$", var.cache_prefix))
    error_message = "cache_prefix: a folder with a slash at its end, such as cache/; an empty one would expire the whole bucket."
  }
}

variable "cache_days" {
  description = "Days that a cached object is kept."
  type        = number
  default     = 30
  validation {
    condition     = var.cache_days >= 1 && floor(var.cache_days) == var.cache_days
    error_message = "cache_days: a whole number of days, at least 1."
  }
}

variable "noncurrent_days" {
  description = "Days that an overwritten or deleted object can still be had back, and is paid for."
  type        = number
  default     = 7
  validation {
    condition     = var.noncurrent_days >= 1 && floor(var.noncurrent_days) == var.noncurrent_days
    error_message = "noncurrent_days: a whole number of days, at least 1."
  }
}
