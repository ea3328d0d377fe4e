# For an EKS cluster that is there already: a bucket, a role for the pods, and manifests from the same worker groups.
# Kubernetes itself is left to kubectl: a provider configured from a cluster of the same apply is a known trap.

module "groups" {
  source        = "../../modules/worker_groups"
  worker_groups = var.worker_groups
  max_gpus      = var.max_gpus
}

module "storage" {
  source      = "../../modules/aws_storage"
  bucket      = var.bucket
  kms_key_arn = var.kms_key_arn
}

module "access" {
  source      = "../../modules/bucket_access"
  bucket_arn  = module.storage.bucket_arn
  kms_key_arn = var.kms_key_arn
}

module "render" {
  source               = "../../modules/render_kuberay"
  name                 = var.name
  namespace            = var.namespace
  platform             = "eks"
  ray_version          = var.ray_version
  image                = var.image
  groups               = module.groups.groups
  max_gpus             = var.max_gpus
  service_account      = local.service_account
  idle_timeout_minutes = var.idle_timeout_minutes
  job                  = var.job
}

locals {
  service_account = "${var.name}-ray"
}

resource "aws_iam_role" "pods" {
  name        = "${var.name}-pods"
  description = "Pods of the Ray cluster ${var.name} in ${var.eks_cluster}"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Principal = { Service = "pods.eks.amazonaws.com" }
    }]
  })
}

resource "aws_iam_role_policy" "pods" {
  name   = "data"
  role   = aws_iam_role.pods.id
  policy = jsonencode({ Version = "2012-10-17", Statement = module.access.statements })
}

resource "aws_eks_pod_identity_association" "pods" {
  cluster_name    = var.eks_cluster
  namespace       = var.namespace
  service_account = local.service_account
  role_arn        = aws_iam_role.pods.arn
}
