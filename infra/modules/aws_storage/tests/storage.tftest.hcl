mock_provider "aws" {
  mock_resource "aws_s3_bucket" {
    defaults = { arn = "arn:aws:s3:::lab-tiles", id = "lab-tiles" }
  }
}

variables {
  bucket = "lab-tiles"
}

run "closed" {
  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.this.block_public_acls,
      aws_s3_bucket_public_access_block.this.block_public_policy,
      aws_s3_bucket_public_access_block.this.ignore_public_acls,
      aws_s3_bucket_public_access_block.this.restrict_public_buckets,
    ])
    error_message = "one of the four public access blocks is off"
  }
  assert {
    condition     = one(aws_s3_bucket_ownership_controls.this.rule).object_ownership == "BucketOwnerEnforced"
    error_message = "ACLs are in force"
  }
  assert {
    condition = anytrue([for s in jsondecode(aws_s3_bucket_policy.tls_only.policy).Statement :
      s.Effect == "Deny" && s.Principal == "*" && s.Action == "s3:*"
    && s.Condition.Bool["aws:SecureTransport"] == "false" && length(s.Resource) == 2])
    error_message = "plain HTTP is not denied for the bucket and its objects"
  }
  assert {
    condition     = alltrue([for s in jsondecode(aws_s3_bucket_policy.tls_only.policy).Statement : s.Effect == "Deny"])
    error_message = "the bucket policy lets somebody in"
  }
  assert {
    condition     = !aws_s3_bucket.this.force_destroy
    error_message = "destroy would take the data along"
  }
}

run "encrypted_without_a_key_of_ones_own" {
  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.this.rule).apply_server_side_encryption_by_default).sse_algorithm == "AES256"
    error_message = "not encrypted"
  }
}

run "encrypted_with_it" {
  variables { kms_key_arn = "arn:aws:kms:eu-central-1:111122223333:key/0a" }
  assert {
    condition     = one(aws_s3_bucket_server_side_encryption_configuration.this.rule).bucket_key_enabled
    error_message = "each object would be a call to KMS"
  }
  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.this.rule).apply_server_side_encryption_by_default).kms_master_key_id == "arn:aws:kms:eu-central-1:111122223333:key/0a"
    error_message = "another key than the one named"
  }
}

run "old_things_go" {
  variables { noncurrent_days = 3 }
  assert {
    condition     = one(aws_s3_bucket_versioning.this.versioning_configuration).status == "Enabled"
    error_message = "an overwritten checkpoint could not be had back"
  }
  assert {
    condition     = one([for r in aws_s3_bucket_lifecycle_configuration.this.rule : one(r.noncurrent_version_expiration).noncurrent_days if r.id == "old-versions"]) == 3
    error_message = "old versions are kept and billed for ever"
  }
  assert {
    condition     = one([for r in aws_s3_bucket_lifecycle_configuration.this.rule : one(r.abort_incomplete_multipart_upload).days_after_initiation if r.id == "old-versions"]) == 7
    error_message = "broken uploads are kept and billed for ever"
  }
  assert {
    condition     = one([for r in aws_s3_bucket_lifecycle_configuration.this.rule : one(r.filter).prefix if r.id == "cache"]) == "cache/"
    error_message = "the cache rule reaches beyond the cache"
  }
}

run "refuses_a_dotted_bucket" {
  command = plan
  variables { bucket = "lab.tiles" }
  expect_failures = [var.bucket]
}

run "refuses_a_cache_that_is_the_whole_bucket" {
  command = plan
  variables { cache_prefix = "" }
  expect_failures = [var.cache_prefix]
}

run "refuses_a_key_alias" {
  command = plan
  variables { kms_key_arn = "arn:aws:kms:eu-central-1:111122223333:alias/mine" }
  expect_failures = [var.kms_key_arn]
}

run "refuses_no_days" {
  command = plan
  variables {
    cache_days      = 0
    noncurrent_days = 0.5
  }
  expect_failures = [var.cache_days, var.noncurrent_days]
}
