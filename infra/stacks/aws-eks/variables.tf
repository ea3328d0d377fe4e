variable "name" {
  description = "Name of the RayCluster; prefix of what is made."
  type        = string
}

variable "region" {
  description = "Where the EKS cluster stands."
  type        = string
}

variable "eks_cluster" {
  description = "An existing EKS cluster with the Pod Identity agent, Karpenter, the NVIDIA device plugin and KubeRay's operator."
  type        = string
  validation {
    condition     = can(regex("^[0-9A-Za-z][A-Za-z0-9_-]{0,99}$", var.eks_cluster))
    error_message = "eks_cluster: the name of an EKS cluster."
  }
}

variable "namespace" {
  description = "Kubernetes namespace of the RayCluster; must exist."
  type        = string
  default     = "pathryoshka"
  validation {
    condition     = !contains(["default", "kube-system"], var.namespace)
    error_message = "namespace: one of its own; the bucket's rights are given to a service account in it."
  }
}

variable "worker_groups" {
  description = "The same list as for EC2; see modules/worker_groups."
  type        = any
}

variable "max_gpus" {
  description = "More GPUs than this are refused, and are the limit of the node pool."
  type        = number
}

variable "bucket" {
  description = "Name of the bucket, new in all of S3."
  type        = string
}

variable "kms_key_arn" {
  description = "A customer key for the bucket, or null."
  type        = string
  default     = null
}

variable "image" {
  description = "Container image by digest."
  type        = string
}

variable "ray_version" {
  description = "Ray in the image."
  type        = string
  default     = "2.60.0"
}

variable "idle_timeout_minutes" {
  description = "Workers without work end after so long."
  type        = number
  default     = 10
}

variable "job" {
  description = "Also a RayJob: its own cluster for one entrypoint, taken away afterwards. Null for none."
  type        = object({ name = string, entrypoint = string, deadline_hours = number })
  default     = null
}
