# A private Ray cluster on EC2 from one list of worker groups: a head on demand, workers at zero when idle, no SSH, no
# way in but Session Manager and a token.

module "groups" {
  source        = "../../modules/worker_groups"
  worker_groups = var.worker_groups
  max_gpus      = var.max_gpus
}

module "network" {
  source             = "../../modules/aws_network"
  name               = var.name
  vpc_id             = var.vpc_id
  subnet_ids         = var.subnet_ids
  availability_zones = var.availability_zones
  egress             = var.egress
  head_private_ip    = var.head_private_ip
}

module "storage" {
  source      = "../../modules/aws_storage"
  bucket      = var.bucket
  kms_key_arn = var.kms_key_arn
}

# A teardown keeps a bucket with data in it; the next apply takes it up again, and closes it as a new one.
import {
  for_each = var.adopt_bucket ? [var.bucket] : []
  to       = module.storage.aws_s3_bucket.this
  id       = each.value
}

module "identity" {
  source                   = "../../modules/aws_identity"
  name                     = var.name
  bucket_arn               = module.storage.bucket_arn
  parameter_arns           = module.head.parameter_arns
  image_repository_arn     = local.repository_arn
  kms_key_arn              = var.kms_key_arn
  instance_types           = module.groups.instance_types
  subnet_ids               = module.network.subnet_ids
  security_group_id        = module.network.security_group_id
  capacity_reservation_ids = compact([for g in module.groups.groups : g.capacity_reservation_id])
}

module "render" {
  source                      = "../../modules/render_ec2"
  name                        = var.name
  region                      = var.region
  image                       = var.image
  ami_id                      = var.ami_id
  groups                      = module.groups.groups
  max_workers                 = module.groups.max_workers
  subnet_ids                  = module.network.subnet_ids
  security_group_ids          = [module.network.security_group_id]
  worker_instance_profile_arn = module.identity.worker_instance_profile_arn
  head_private_ip             = module.network.head_private_ip
  config_uri                  = module.head.config_uri
  token_parameter             = module.head.token_parameter
  idle_timeout_minutes        = var.idle_timeout_minutes
  head_idle_shutdown_minutes  = var.head_idle_shutdown_minutes
  placement_group             = one(aws_placement_group.students[*].name)
  tls                         = var.tls
  ca_parameter                = module.head.ca_parameter
}

module "head" {
  source            = "../../modules/aws_head"
  name              = var.name
  ami_id            = var.ami_id
  instance_type     = var.head_instance_type
  subnet_id         = module.network.subnet_ids[0]
  private_ip        = module.network.head_private_ip
  security_group_id = module.network.security_group_id
  instance_profile  = module.identity.head_instance_profile
  user_data         = module.render.head_user_data
  cluster_yaml      = module.render.cluster_yaml
  bucket            = module.storage.bucket
  kms_key_arn       = var.kms_key_arn
  ray_token         = var.ray_token
  ray_token_version = var.ray_token_version
  tls               = var.tls
  ray_ca            = var.ray_ca
}

module "cost" {
  source             = "../../modules/aws_cost"
  name               = var.name
  monthly_budget_usd = var.monthly_budget_usd
  budget_scope       = var.budget_scope
  alert_emails       = var.alert_emails
  gpu_hours_in_a_row = var.gpu_hours_in_a_row
  head_instance_id   = module.head.instance_id
  night_stop         = var.night_stop
}

locals {
  # <account>.dkr.ecr.<region>.amazonaws.com/<repository>@sha256:<digest>, or an image that anybody may pull
  ecr            = try(regex("^([0-9]{12})\\.dkr\\.ecr\\.([a-z0-9-]+)\\.amazonaws\\.com/([^@:]+)", var.image), null)
  repository_arn = local.ecr == null ? null : "arn:aws:ecr:${local.ecr[1]}:${local.ecr[0]}:repository/${local.ecr[2]}"
}

check "the_image_can_be_pulled" {
  assert {
    condition     = var.egress != "endpoints" || local.ecr != null
    error_message = "egress = \"endpoints\" has no way to the internet, and ${var.image} is not in ECR: nodes cannot pull it. Copy it to ECR, or set egress = \"nat\"."
  }
}
