# The one machine that Terraform starts. It is on demand, because everything hangs on it, and it stops itself when it has
# nothing to do (the boot script's timer): the autoscaler ends workers but never the head.

resource "aws_instance" "head" {
  #checkov:skip=CKV_AWS_126:metrics by the minute are Prometheus' work here
  ami                                  = var.ami_id
  instance_type                        = var.instance_type
  subnet_id                            = var.subnet_id
  private_ip                           = var.private_ip # fixed: workers' boot scripts name it, and it outlives the head
  vpc_security_group_ids               = [var.security_group_id]
  associate_public_ip_address          = false
  iam_instance_profile                 = var.instance_profile
  ebs_optimized                        = true
  instance_initiated_shutdown_behavior = "stop"
  user_data                            = var.user_data
  user_data_replace_on_change          = true
  depends_on                           = [aws_s3_object.config, aws_ssm_parameter.token, aws_ssm_parameter.ca]

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1 # the container shares the host's network
    instance_metadata_tags      = "enabled"
  }

  root_block_device {
    volume_type           = "gp3"
    volume_size           = var.disk_gib
    encrypted             = true
    kms_key_id            = var.kms_key_arn
    delete_on_termination = true
    tags                  = { Name = "${var.name}-head", ray-cluster-name = var.name }
  }

  # What the autoscaler knows its head by. Exactly one instance may carry them: beside a second one it starts nothing.
  tags = {
    Name               = "ray-${var.name}-head"
    ray-cluster-name   = var.name
    ray-node-type      = "head"
    ray-user-node-type = "head"
    ray-node-status    = "up-to-date"
  }
}

# In the bucket and not in user data, so that an edited group replaces an object and not the head: the autoscaler reads
# its config anew in every round.
resource "aws_s3_object" "config" {
  #checkov:skip=CKV_AWS_186:encrypted as the bucket is
  bucket       = var.bucket
  key          = var.config_key
  content      = var.cluster_yaml
  content_type = "application/yaml"
}

resource "aws_ssm_parameter" "token" {
  #checkov:skip=CKV_AWS_337:a customer key where kms_key_arn is given
  name             = "/${var.name}/ray-token"
  description      = "Token of the Ray cluster ${var.name}"
  type             = "SecureString"
  key_id           = var.kms_key_arn
  value_wo         = var.ray_token
  value_wo_version = var.ray_token_version
}

resource "aws_ssm_parameter" "ca" {
  #checkov:skip=CKV_AWS_337:a customer key where kms_key_arn is given
  count            = var.tls ? 1 : 0
  name             = "/${var.name}/ray-ca"
  description      = "Authority that signs the certificates of nodes of ${var.name}"
  type             = "SecureString"
  key_id           = var.kms_key_arn
  value_wo         = var.ray_ca
  value_wo_version = var.ray_token_version
}
