variables {
  name                        = "lab"
  region                      = "eu-central-1"
  image                       = "registry.example/pathryoshka@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  ami_id                      = "ami-0123456789abcdef0"
  subnet_ids                  = ["subnet-1", "subnet-2"]
  security_group_ids          = ["sg-1"]
  worker_instance_profile_arn = "arn:aws:iam::123456789012:instance-profile/lab-worker"
  head_private_ip             = "10.0.0.10"
  config_uri                  = "s3://lab-bucket/infra/cluster.yaml"
  token_parameter             = "/pathryoshka/lab/ray-token"
  max_workers                 = 5
}

run "groups" {
  command = plan
  module {
    source = "../worker_groups"
  }
  variables {
    max_gpus = 16
    worker_groups = [
      { name = "teacher", role = "teacher", instance_types = ["g6e.2xlarge", "g6e.4xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", min = 1, max = 4, spot = true },
      { name = "student", role = "student", instance_types = ["p4d.24xlarge"], cpus = 90, memory_gib = 1000, gpus = 8, accelerator = "A100", max = 1, efa = true, efa_cards = 4, capacity_reservation_id = "cr-0123abcd", capacity_block = true },
    ]
  }
}

run "spot_before_on_demand" {
  command = plan
  variables {
    groups = run.groups.groups
  }

  assert {
    condition = [yamldecode(output.cluster_yaml).available_node_types.teacher.node_config.InstanceType, yamldecode(output.cluster_yaml).available_node_types.teacher.node_config.InstanceMarketOptions.MarketType] == ["g6e.2xlarge", "spot"] && [for way in yamldecode(output.cluster_yaml).provider.next_best.teacher : "${way.InstanceType} ${try(way.InstanceMarketOptions.MarketType, "on demand")}"] == [
      "g6e.4xlarge spot", "g6e.2xlarge on demand", "g6e.4xlarge on demand"
    ]
    error_message = "spot in both types, then on demand in both"
  }
  assert {
    condition     = { for k, t in yamldecode(output.cluster_yaml).available_node_types : k => [t.min_workers, t.max_workers] } == { head = [0, 0], teacher = [1, 4], student = [0, 1] }
    error_message = "a group is one node type with one minimum and one maximum"
  }
  assert {
    condition     = yamldecode(output.cluster_yaml).provider.module == "ec2_provider.Provider" && strcontains(output.head_user_data, "class Provider(AWSNodeProvider)") && strcontains(output.head_user_data, "PYTHONPATH=/etc/ray")
    error_message = "who tries the other ways, where the head finds it"
  }
}

run "nothing_is_reachable_or_left_behind" {
  command = plan
  variables {
    groups = run.groups.groups
  }

  assert {
    condition     = alltrue([for k, t in yamldecode(output.cluster_yaml).available_node_types : t.node_config.MetadataOptions.HttpTokens == "required" && t.node_config.InstanceInitiatedShutdownBehavior == "terminate" && t.node_config.BlockDeviceMappings[0].Ebs.Encrypted && !can(t.node_config.KeyName) if k != "head"])
    error_message = "IMDSv2, termination at power-off, encrypted disks, no SSH key"
  }
  assert {
    condition     = yamldecode(output.cluster_yaml).provider.use_internal_ips && yamldecode(output.cluster_yaml).provider.disable_node_updaters && !yamldecode(output.cluster_yaml).provider.cache_stopped_nodes
    error_message = "no public addresses, no SSH updaters, no stopped nodes"
  }
  assert {
    condition     = alltrue([for k in ["initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"] : yamldecode(output.cluster_yaml)[k] == []])
    error_message = "no command list is left to Ray's defaults"
  }
}

run "students_sit_together" {
  command = plan
  variables {
    groups          = run.groups.groups
    placement_group = "lab-students"
  }

  assert {
    condition     = yamldecode(output.cluster_yaml).available_node_types.student.node_config.Placement.GroupName == "lab-students" && !can(yamldecode(output.cluster_yaml).available_node_types.teacher.node_config.Placement)
    error_message = "only students in the placement group"
  }
  assert {
    condition     = yamldecode(output.cluster_yaml).available_node_types.student.node_config.SubnetIds == ["subnet-1", "subnet-2"] && [for card in yamldecode(output.cluster_yaml).available_node_types.student.node_config.NetworkInterfaces : [card.NetworkCardIndex, card.DeviceIndex, card.InterfaceType]] == [[0, 0, "efa"], [1, 1, "efa-only"], [2, 1, "efa-only"], [3, 1, "efa-only"]] && strcontains(output.worker_user_data.student, "FI_PROVIDER=efa")
    error_message = "EFA on students that ask for it"
  }
  assert {
    condition     = yamldecode(output.cluster_yaml).available_node_types.student.node_config.CapacityReservationSpecification.CapacityReservationTarget.CapacityReservationId == "cr-0123abcd" && yamldecode(output.cluster_yaml).available_node_types.student.node_config.InstanceMarketOptions == { MarketType = "capacity-block" }
    error_message = "the reservation is used"
  }
}

run "boot" {
  command = plan
  variables {
    groups = run.groups.groups
  }

  assert {
    condition     = alltrue([for k, text in output.worker_user_data : strcontains(text, "RAY_CLOUD_INSTANCE_ID=") && strcontains(text, "RAY_NODE_TYPE_NAME=${k} ") && strcontains(text, "RAY_AUTH_MODE=token") && strcontains(text, "get-parameter") && strcontains(text, "shutdown -h")])
    error_message = "what a worker has to say to the autoscaler, its token and its end"
  }
  assert {
    condition     = strcontains(output.head_user_data, "RAY_enable_autoscaler_v2=1") && strcontains(output.head_user_data, "--dashboard-host=127.0.0.1") && strcontains(output.head_user_data, "ray-idle.timer")
    error_message = "autoscaler v2, a dashboard on loopback, a head that ends itself"
  }
  assert {
    condition     = !strcontains(output.cluster_yaml, "RAY_AUTH_TOKEN=") && !strcontains(output.head_user_data, "RAY_AUTH_TOKEN=")
    error_message = "no token in any file"
  }
}

run "tls_when_asked" {
  command = plan
  variables {
    groups       = run.groups.groups
    tls          = true
    ca_parameter = "/lab/ray-ca"
  }

  assert {
    condition     = strcontains(output.head_user_data, "RAY_USE_TLS=1") && strcontains(output.worker_user_data.teacher, "RAY_USE_TLS=1")
    error_message = "both sides, or nobody connects"
  }
  assert {
    condition     = alltrue([for text in concat([output.head_user_data], values(output.worker_user_data)) : strcontains(text, "--name /lab/ray-ca") && strcontains(text, "rm /run/ray-ca /run/ray-ca.key")])
    error_message = "every node signs a certificate and forgets the authority's key"
  }
}

run "refuses_an_image_by_tag" {
  command = plan
  variables {
    groups = run.groups.groups
    image  = "pathryoshka:latest"
  }
  expect_failures = [var.image]
}

run "refuses_tls_without_an_authority" {
  command = plan
  variables {
    groups = run.groups.groups
    tls    = true
  }
  expect_failures = [var.ca_parameter]
}

run "refuses_a_region_of_no_form" {
  command = plan
  variables {
    groups = run.groups.groups
    region = "frankfurt"
  }
  expect_failures = [var.region]
}

run "refuses_workers_that_idle_for_hours" {
  command = plan
  variables {
    groups               = run.groups.groups
    idle_timeout_minutes = 600
  }
  expect_failures = [var.idle_timeout_minutes]
}

run "refuses_no_subnet" {
  command = plan
  variables {
    groups     = run.groups.groups
    subnet_ids = []
  }
  expect_failures = [var.subnet_ids]
}

run "refuses_a_head_that_ends_while_it_boots" {
  command = plan
  variables {
    groups                     = run.groups.groups
    head_idle_shutdown_minutes = 3
  }
  expect_failures = [var.head_idle_shutdown_minutes]
}
