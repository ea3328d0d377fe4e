# Two roles. Workers read and write the bucket's folders and fetch the token. The head does that too, and starts and ends
# workers: of the listed types, in the cluster's subnets, with the worker role and the cluster's tag, and no others.

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  region  = data.aws_region.current.id
  account = data.aws_caller_identity.current.account_id
  ec2     = "arn:${data.aws_partition.current.partition}:ec2:${local.region}:${local.account}"
  trust = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
}

module "bucket" {
  source      = "../bucket_access"
  bucket_arn  = var.bucket_arn
  prefixes    = var.prefixes
  kms_key_arn = var.kms_key_arn
}

resource "aws_iam_role" "worker" {
  name                 = "${var.name}-worker"
  description          = "A worker of the Ray cluster ${var.name}"
  assume_role_policy   = local.trust
  permissions_boundary = var.permissions_boundary_arn
}

resource "aws_iam_role" "head" {
  name                 = "${var.name}-head"
  description          = "The head of the Ray cluster ${var.name}"
  assume_role_policy   = local.trust
  permissions_boundary = var.permissions_boundary_arn
}

resource "aws_iam_instance_profile" "worker" {
  name = aws_iam_role.worker.name
  role = aws_iam_role.worker.name
}

resource "aws_iam_instance_profile" "head" {
  name = aws_iam_role.head.name
  role = aws_iam_role.head.name
}

resource "aws_iam_role_policy" "worker" {
  name   = "data"
  role   = aws_iam_role.worker.id
  policy = jsonencode({ Version = "2012-10-17", Statement = local.data })
}

resource "aws_iam_role_policy" "head_data" {
  name   = "data"
  role   = aws_iam_role.head.id
  policy = jsonencode({ Version = "2012-10-17", Statement = concat(local.data, local.head_config) })
}

resource "aws_iam_role_policy" "head_workers" {
  name   = "workers"
  role   = aws_iam_role.head.id
  policy = jsonencode({ Version = "2012-10-17", Statement = local.workers })
}

resource "aws_iam_role_policy" "head_session" {
  #checkov:skip=CKV_AWS_290:the agent's own calls, which know no resources
  #checkov:skip=CKV_AWS_355:the agent's own calls, which know no resources
  name   = "session"
  role   = aws_iam_role.head.id
  policy = jsonencode({ Version = "2012-10-17", Statement = local.session })
}
