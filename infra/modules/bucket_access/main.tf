# What jobs may do with the bucket, as IAM statements: their folders and nothing else. EC2's roles and EKS' Pod Identity
# are given the same ones.

locals {
  statements = concat(
    [
      {
        Sid       = "ListFolders"
        Effect    = "Allow"
        Action    = ["s3:ListBucket"]
        Resource  = [var.bucket_arn]
        Condition = { StringLike = { "s3:prefix" = flatten([for p in var.prefixes : [trimsuffix(p, "/"), "${p}*"]]) } }
      },
      {
        Sid      = "FindBucket"
        Effect   = "Allow"
        Action   = ["s3:GetBucketLocation"]
        Resource = [var.bucket_arn]
      },
      {
        Sid      = "Objects"
        Effect   = "Allow"
        Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
        Resource = [for p in var.prefixes : "${var.bucket_arn}/${p}*"]
      },
    ],
    [for arn in compact([var.kms_key_arn]) : {
      Sid      = "Key"
      Effect   = "Allow"
      Action   = ["kms:Decrypt", "kms:GenerateDataKey"]
      Resource = [arn]
    }],
  )
}
