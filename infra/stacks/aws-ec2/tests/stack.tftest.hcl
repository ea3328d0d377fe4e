mock_provider "aws" {
  mock_data "aws_region" {
    defaults = { id = "eu-central-1", name = "eu-central-1" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "111122223333" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::111122223333:role/lab-worker" }
  }
  mock_resource "aws_iam_instance_profile" {
    defaults = { arn = "arn:aws:iam::111122223333:instance-profile/lab-worker" }
  }
  mock_resource "aws_s3_bucket" {
    defaults = { id = "lab-tiles", arn = "arn:aws:s3:::lab-tiles" }
  }
  mock_resource "aws_ssm_parameter" {
    defaults = { arn = "arn:aws:ssm:eu-central-1:111122223333:parameter/lab/ray-token" }
  }
  mock_resource "aws_sns_topic" {
    defaults = { arn = "arn:aws:sns:eu-central-1:111122223333:lab-alerts" }
  }
  mock_resource "aws_instance" {
    defaults = { id = "i-0123456789abcdef0" }
  }
  mock_resource "aws_security_group" {
    defaults = { id = "sg-0a" }
  }
  override_data {
    target = data.aws_ec2_instance_type.worker["g6e.2xlarge"]
    values = { default_vcpus = 8, memory_size = 65536, gpus = [{ count = 1 }], efa_supported = false }
  }
  override_data {
    target = data.aws_ec2_instance_type.worker["p4d.24xlarge"]
    values = { default_vcpus = 96, memory_size = 1179648, gpus = [{ count = 8 }], efa_supported = true }
  }
}

variables {
  name               = "lab"
  region             = "eu-central-1"
  availability_zones = ["eu-central-1a", "eu-central-1b"]
  bucket             = "lab-tiles"
  ami_id             = "ami-0123456789abcdef0"
  image              = "111122223333.dkr.ecr.eu-central-1.amazonaws.com/pathryoshka@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  monthly_budget_usd = 500
  alert_emails       = ["lab@example.org"]
  max_gpus           = 24
  ray_token          = "planted-token-0123456789abcdef-0123456789"
  ray_ca             = ""
  worker_groups = [
    { name = "teacher", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 4, spot = true },
    { name = "student", role = "student", instance_types = ["p4d.24xlarge"], cpus = 90, memory_gib = 1000, gpus = 8, accelerator = "A100", max = 2, efa = true },
  ]
}

run "wired" {
  assert {
    condition     = output.total_gpus == 20 && strcontains(output.port_forward_command, "--target i-0123456789abcdef0 ") && output.bucket_uri == "s3://lab-tiles"
    error_message = "an output does not say what was made"
  }
  assert {
    condition = alltrue([for name, t in yamldecode(output.cluster_yaml).available_node_types :
    strcontains(t.node_config.UserData, "10.42.0.10:") && t.node_config.IamInstanceProfile.Arn == "arn:aws:iam::111122223333:instance-profile/lab-worker" if name != "head"])
    error_message = "a worker does not know the head's address, or has another role than the worker's"
  }
  assert {
    condition = alltrue([for name, t in yamldecode(output.cluster_yaml).available_node_types :
    t.node_config.MetadataOptions.HttpTokens == "required" if name != "head"])
    error_message = "a worker takes IMDSv1, and the head's role refuses to start it"
  }
  assert {
    condition = alltrue([for name, t in yamldecode(output.cluster_yaml).available_node_types :
    (try(t.node_config.Placement.GroupName, "") == "lab-students") == startswith(name, "student") if name != "head"])
    error_message = "students of several nodes, and only they, stand close together"
  }
  assert {
    condition     = !strcontains(jsonencode([output.cluster_yaml, output.submit_env, output.port_forward_command]), "planted-token")
    error_message = "the token is in an output"
  }
}

run "one_student_needs_no_placement" {
  variables {
    worker_groups = [
      { name = "student", role = "student", instance_types = ["p4d.24xlarge"], cpus = 90, memory_gib = 1000, gpus = 8, accelerator = "A100", max = 1 },
    ]
  }
  assert {
    condition     = length(aws_placement_group.students) == 0
    error_message = "a placement group makes capacity harder to have, and one node gains nothing from it"
  }
}

run "refuses_what_the_machine_has_not" {
  command = plan
  variables {
    worker_groups = [
      { name = "teacher", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 12, memory_gib = 52, gpus = 2, accelerator = "L40S", max = 4, spot = true },
    ]
  }
  expect_failures = [terraform_data.claims]
}

run "refuses_efa_where_there_is_none" {
  command = plan
  variables {
    worker_groups = [
      { name = "student", role = "student", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2, efa = true },
    ]
  }
  expect_failures = [terraform_data.claims]
}

run "warns_of_efa_that_is_not_used" {
  command = plan
  variables {
    worker_groups = [
      { name = "student", role = "student", instance_types = ["p4d.24xlarge"], cpus = 90, memory_gib = 1000, gpus = 8, accelerator = "A100", max = 2 },
    ]
  }
  expect_failures = [check.several_students_use_what_their_network_has]
}

run "warns_of_an_image_that_cannot_be_pulled" {
  command = plan
  variables { image = "ghcr.io/lab/pathryoshka@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" }
  expect_failures = [check.the_image_can_be_pulled]
}

run "refuses_a_region_that_is_none" {
  command = plan
  variables { region = "europe" }
  expect_failures = [var.region]
}
