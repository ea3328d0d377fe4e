# One list of groups through both renderings, for tests/test_infra.py.

terraform {
  required_version = ">= 1.11, < 2.0"
}

variable "platform" {
  type    = string
  default = "eks"
}

locals {
  image = "registry.example/pathryoshka@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
}

module "groups" {
  source   = "../../modules/worker_groups"
  max_gpus = 16
  worker_groups = [
    { name = "teacher", role = "teacher", instance_types = ["g6e.2xlarge", "g6e.4xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 4, spot = true, resources = { slots = 2 } },
    { name = "student", role = "student", instance_types = ["p4d.24xlarge"], cpus = 90, memory_gib = 1000, gpus = 8, accelerator = "A100", max = 1, labels = { network = "fast" } },
    { name = "readers", role = "cpu", instance_types = ["m7i.4xlarge"], cpus = 14, memory_gib = 56, min = 1, max = 2 },
  ]
}

module "ec2" {
  source                      = "../../modules/render_ec2"
  name                        = "lab"
  region                      = "eu-central-1"
  image                       = local.image
  ami_id                      = "ami-0123456789abcdef0"
  groups                      = module.groups.groups
  max_workers                 = module.groups.max_workers
  subnet_ids                  = ["subnet-0123456789abcdef0"]
  security_group_ids          = ["sg-0123456789abcdef0"]
  worker_instance_profile_arn = "arn:aws:iam::123456789012:instance-profile/lab-worker"
  head_private_ip             = "10.0.0.10"
  config_uri                  = "s3://lab-bucket/infra/cluster.yaml"
  token_parameter             = "/pathryoshka/lab/ray-token"
}

module "kuberay" {
  source           = "../../modules/render_kuberay"
  name             = "lab"
  ray_version      = "2.60.0"
  image            = local.image
  platform         = var.platform
  gke_accelerators = { L40S = "nvidia-l40s", A100 = "nvidia-tesla-a100" }
  service_account  = "pathryoshka"
  groups           = module.groups.groups
  max_gpus         = module.groups.total_gpus
  job              = { name = "distil", entrypoint = "python -m ray_jobs.distill --config run.yaml", deadline_hours = 48 }
}

output "groups" {
  value = module.groups.groups
}

output "cluster_yaml" {
  value = module.ec2.cluster_yaml
}

output "head_user_data" {
  value = module.ec2.head_user_data
}

output "worker_user_data" {
  value = module.ec2.worker_user_data
}

output "raycluster_yaml" {
  value = module.kuberay.raycluster_yaml
}

output "rayjob_yaml" {
  value = module.kuberay.rayjob_yaml
}

output "network_policy_yaml" {
  value = module.kuberay.network_policy_yaml
}
