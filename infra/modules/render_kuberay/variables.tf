variable "name" {
  description = "Name of the RayCluster."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,30}$", var.name))
    error_message = "name: lower-case letters, digits and '-', 2 to 31, a letter first."
  }
}

variable "namespace" {
  type    = string
  default = "pathryoshka"
}

variable "ray_version" {
  type = string
  validation {
    condition     = can(regex("^[0-9]+\\.[0-9]+\\.[0-9]+$", var.ray_version))
    error_message = "ray_version: e.g. 2.60.0, the one that is in the image."
  }
}

variable "image" {
  type = string
  validation {
    condition     = can(regex("^[^@ ]+@sha256:[0-9a-f]{64}$", var.image))
    error_message = "image is named by digest: registry/repository@sha256:<64 hex digits>."
  }
}

variable "groups" {
  description = "Output `groups` of the module worker_groups."
  type        = any
}

variable "platform" {
  description = "Whose node labels choose machines: eks (Karpenter: instance types and market), gke (accelerator and spot), onprem (only node_selectors)."
  type        = string
  validation {
    condition     = contains(["eks", "gke", "onprem"], var.platform)
    error_message = "platform is eks, gke or onprem."
  }
}

variable "gke_accelerators" {
  description = "GKE's name of each accelerator."
  type        = map(string)
  default     = { L4 = "nvidia-l4", A100 = "nvidia-tesla-a100", "A100-80G" = "nvidia-a100-80gb", H100 = "nvidia-h100-80gb" }
}

variable "node_selectors" {
  description = "Further node labels, by group."
  type        = map(map(string))
  default     = {}
}

variable "service_account" {
  description = "Kubernetes service account that may reach the bucket (Pod Identity, Workload Identity)."
  type        = string
}

variable "idle_timeout_minutes" {
  type    = number
  default = 10
  validation {
    condition     = var.idle_timeout_minutes >= 1 && var.idle_timeout_minutes <= 120
    error_message = "idle_timeout_minutes: 1 to 120; a forgotten GPU costs as much as a busy one."
  }
}

variable "head_memory_gib" {
  type    = number
  default = 16
}

variable "max_gpus" {
  description = "Limit of the Karpenter NodePool."
  type        = number
}

variable "job" {
  description = "Also a RayJob of this entrypoint, which brings its own cluster and takes it away again; null = none."
  type = object({
    name           = string
    entrypoint     = string
    deadline_hours = number
  })
  default = null
}
