# After the policies, so that whoever writes into the bucket finds it closed already.
output "bucket" {
  value      = aws_s3_bucket.this.id
  depends_on = [aws_s3_bucket_public_access_block.this, aws_s3_bucket_policy.tls_only]
}

output "bucket_arn" {
  value = aws_s3_bucket.this.arn
}

output "bucket_uri" {
  value = "s3://${aws_s3_bucket.this.id}"
}
