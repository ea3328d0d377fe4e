variables {
  max_gpus = 16
  worker_groups = [
    { name = "teacher-l40s", role = "teacher", instance_types = ["g6e.2xlarge", "g6e.4xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 4, spot = true },
    { name = "student-a100", role = "student", instance_types = ["p4d.24xlarge"], cpus = 90, memory_gib = 1000, gpus = 8, accelerator = "A100", max = 1, labels = { zone = "b" } },
    { name = "readers", role = "cpu", instance_types = ["m7i.4xlarge"], cpus = 14, memory_gib = 56, max = 2 },
  ]
}

run "roles_become_resources" {
  command = plan

  assert {
    condition     = jsonencode(output.groups["teacher-l40s"].ray_resources) == jsonencode({ CPU = 6, GPU = 1, teacher = 1, "accelerator_type:L40S" = 1 })
    error_message = "a teacher node has CPUs, GPUs, its accelerator and one unit of its role"
  }
  assert {
    condition     = jsonencode(output.groups["readers"].ray_resources) == jsonencode({ CPU = 14, cpu = 1 })
    error_message = "a CPU node has no GPU"
  }
  assert {
    condition     = jsonencode(output.groups["student-a100"].ray_labels) == jsonencode({ role = "student", group = "student-a100", zone = "b" })
    error_message = "labels: role, group and the group's own"
  }
}

run "spot_first_then_on_demand" {
  command = plan

  assert {
    condition     = join(" ", [for v in output.groups["teacher-l40s"].variants : "${v.instance_type}:${v.spot}"]) == "g6e.2xlarge:true g6e.4xlarge:true g6e.2xlarge:false g6e.4xlarge:false"
    error_message = "spot in every type, then on demand"
  }
  assert {
    condition     = length(output.groups["student-a100"].variants) == 1 && !output.groups["student-a100"].variants[0].spot
    error_message = "students never on spot"
  }
}

run "sums" {
  command = plan

  assert {
    condition     = output.total_gpus == 12 && output.max_workers == 7
    error_message = "4 x 1 + 1 x 8 GPUs on 4 + 1 + 2 nodes"
  }
  assert {
    condition     = join(" ", output.instance_types) == "g6e.2xlarge g6e.4xlarge m7i.4xlarge p4d.24xlarge"
    error_message = "every type once, sorted"
  }
}

run "on_demand_only_when_the_fallback_is_off" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2, spot = true, on_demand_fallback = false }]
  }

  assert {
    condition     = length(output.groups["t"].variants) == 1 && output.groups["t"].variants[0].spot
    error_message = "without the fallback there is spot only"
  }
}
