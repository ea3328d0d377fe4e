# Each unsafe or impossible value is refused by name, one run each.

variables {
  max_gpus = 100
}

run "refuses_no_group" {
  command = plan
  variables {
    worker_groups = []
  }
  expect_failures = [var.worker_groups]
}

run "refuses_two_of_one_name" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2 }, { name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_name_with_capitals" {
  command = plan
  variables {
    worker_groups = [{ name = "Teacher", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_name_too_long" {
  command = plan
  variables {
    worker_groups = [{ name = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_name_of_the_head" {
  command = plan
  variables {
    worker_groups = [{ name = "head", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_unknown_role" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "worker", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_no_instance_type" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = [], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_instance_type_twice" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge", "g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_instance_type_wildcard" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.*"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_half_a_cpu" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 0.5, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_no_memory" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 0, gpus = 1, accelerator = "L40S", max = 2 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_half_a_gpu" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 0.5, accelerator = "L40S", max = 2 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_too_many_gpus" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 17, accelerator = "L40S", max = 2 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_teacher_without_gpu" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 0, max = 2 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_cpu_with_gpu" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "cpu", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_gpu_of_no_kind" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, max = 2 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_accelerator_in_lower_case" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "l40s", max = 2 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_accelerator_without_gpu" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "cpu", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 0, accelerator = "L40S", max = 2 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_negative_min" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2, min = -1 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_half_a_min" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2, min = 0.5 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_max_of_zero" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 0 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_min_above_max" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2, min = 3 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_student_on_spot" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "student", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2, spot = true }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_reservation_on_spot" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2, spot = true, capacity_reservation_id = "cr-0123abcd" }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_reservation_of_no_form" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2, capacity_reservation_id = "0123" }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_reservation_of_two_types" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge", "g6e.4xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2, capacity_reservation_id = "cr-0123abcd" }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_efa_for_teachers" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2, efa = true }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_fractional_resource" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2, resources = { slots = 0.5 } }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_resource_of_ray" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2, resources = { GPU = 8 } }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_role_of_another" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2, resources = { student = 1 } }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_label_with_a_prefix" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2, labels = { "ray.io/x" = "y" } }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_small_disk" {
  command = plan
  variables {
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2, disk_gib = 8 }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_more_gpus_than_allowed" {
  command = plan
  variables {
    max_gpus      = 1
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2 }]
  }
  expect_failures = [output.groups]
}

run "refuses_half_a_limit" {
  command = plan
  variables {
    max_gpus      = 1.5
    worker_groups = [{ name = "t", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 2 }]
  }
  expect_failures = [var.max_gpus]
}

run "refuses_a_capacity_block_without_its_id" {
  command = plan
  variables {
    worker_groups = [{ name = "s", role = "student", instance_types = ["p5.48xlarge"], cpus = 180, memory_gib = 1800, gpus = 8, accelerator = "H100", max = 1, capacity_block = true }]
  }
  expect_failures = [var.worker_groups]
}

run "refuses_fabric_cards_without_fabric" {
  command = plan
  variables {
    worker_groups = [{ name = "s", role = "student", instance_types = ["p5.48xlarge"], cpus = 180, memory_gib = 1800, gpus = 8, accelerator = "H100", max = 1, efa_cards = 32 }]
  }
  expect_failures = [var.worker_groups]
}
