mock_provider "aws" {}

variables {
  name              = "lab"
  ami_id            = "ami-0123456789abcdef0"
  subnet_id         = "subnet-0a"
  private_ip        = "10.42.0.10"
  security_group_id = "sg-0a"
  instance_profile  = "lab-head"
  user_data         = "#!/bin/bash\necho boot\n"
  cluster_yaml      = "available_node_types: {head: {}}\n"
  bucket            = "lab-tiles"
  ray_token         = "planted-token-0123456789abcdef-0123456789"
  ray_ca            = ""
}

run "a_private_head" {
  assert {
    condition     = one(aws_instance.head.metadata_options).http_tokens == "required" && one(aws_instance.head.metadata_options).http_put_response_hop_limit == 1
    error_message = "IMDSv1 answers, or the metadata service is reached from behind a container's network"
  }
  assert {
    condition     = !aws_instance.head.associate_public_ip_address && aws_instance.head.vpc_security_group_ids == toset(["sg-0a"])
    error_message = "the head has a public address, or is in another group than the cluster's"
  }
  assert {
    condition     = one(aws_instance.head.root_block_device).encrypted && one(aws_instance.head.root_block_device).delete_on_termination
    error_message = "the disk is in the clear, or stays and is billed after the head is gone"
  }
  assert {
    condition     = aws_instance.head.instance_initiated_shutdown_behavior == "stop"
    error_message = "the idle timer's poweroff must stop the head, not delete it"
  }
  assert {
    condition     = length(aws_instance.head.instance_market_options) == 0
    error_message = "the head must be on demand: everything hangs on it"
  }
}

run "known_to_the_autoscaler" {
  assert {
    condition = (
      aws_instance.head.tags["ray-cluster-name"] == "lab"
      && aws_instance.head.tags["ray-node-type"] == "head"
      && aws_instance.head.tags["ray-user-node-type"] == "head"
      && aws_instance.head.tags["ray-node-status"] == "up-to-date"
    )
    error_message = "without these four tags no worker is ever launched"
  }
}

run "the_token_is_only_in_the_parameter" {
  assert {
    condition     = aws_ssm_parameter.token.type == "SecureString" && !strcontains(nonsensitive(aws_ssm_parameter.token.value), "planted")
    error_message = "the token is kept in the state"
  }
  assert {
    condition     = !strcontains(jsonencode(aws_instance.head), "planted-token") && !strcontains(jsonencode(aws_s3_object.config), "planted-token")
    error_message = "the token is in the instance or in the config"
  }
  assert {
    condition     = length(aws_ssm_parameter.ca) == 0 && length(output.parameter_arns) == 1
    error_message = "an authority although there is no TLS"
  }
}

run "a_new_group_is_a_new_object" {
  variables { cluster_yaml = "available_node_types: {head: {}, more: {}}\n" }
  assert {
    condition     = aws_instance.head.id == run.a_private_head.instance_id
    error_message = "an edited group replaced the head"
  }
  assert {
    condition     = yamldecode(aws_s3_object.config.content).available_node_types.more == {}
    error_message = "the edited config is not in the bucket"
  }
}

run "tls" {
  variables {
    tls    = true
    ray_ca = "-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----\n-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
  }
  assert {
    condition     = one(aws_ssm_parameter.ca).type == "SecureString" && !strcontains(nonsensitive(one(aws_ssm_parameter.ca).value), "BEGIN") && length(output.parameter_arns) == 2
    error_message = "the authority is not in a parameter of its own, or is in the state"
  }
}

run "refuses_a_short_token" {
  command = plan
  variables { ray_token = "secret" }
  expect_failures = [var.ray_token]
}

run "refuses_a_moving_image" {
  command = plan
  variables { ami_id = "latest" }
  expect_failures = [var.ami_id]
}

run "refuses_a_gpu_head" {
  command = plan
  variables { instance_type = "g6e.2xlarge" }
  expect_failures = [var.instance_type]
}

run "refuses_a_public_address" {
  command = plan
  variables { private_ip = "8.8.8.8" }
  expect_failures = [var.private_ip]
}

run "refuses_a_tiny_head" {
  command = plan
  variables { instance_type = "t3.micro" }
  expect_failures = [var.instance_type]
}

run "refuses_a_config_that_jobs_could_write" {
  command = plan
  variables { config_key = "runs/cluster.yaml" }
  expect_failures = [var.config_key]
}

run "refuses_a_config_that_is_none" {
  command = plan
  variables { cluster_yaml = "hello" }
  expect_failures = [var.cluster_yaml]
}

run "refuses_tls_without_an_authority" {
  command = plan
  variables { tls = true }
  expect_failures = [var.ray_ca]
}

run "refuses_user_data_beyond_the_limit" {
  command = plan
  variables { user_data = join("", [for i in range(1000) : "0123456789abcdefg"]) }
  expect_failures = [var.user_data]
}

run "refuses_a_tiny_disk" {
  command = plan
  variables { disk_gib = 8 }
  expect_failures = [var.disk_gib]
}
