# What AWS says of the machines that the groups name, held against what the groups say; and students close together.

data "aws_ec2_instance_type" "worker" {
  for_each      = toset(module.groups.instance_types)
  instance_type = each.key
}

locals {
  # a claim beyond the machine starts nodes that never have what was promised, and the autoscaler starts more of them
  claims = flatten([for g in module.groups.groups : [for t in g.instance_types : {
    what    = "${g.name} on ${t}"
    machine = data.aws_ec2_instance_type.worker[t]
    group   = g
  }]])
  several_students = anytrue([for g in module.groups.groups : g.role == "student" && g.max > 1])
}

resource "terraform_data" "claims" {
  lifecycle {
    precondition {
      condition     = alltrue([for c in local.claims : c.group.cpus <= c.machine.default_vcpus])
      error_message = "More CPUs than the machine has: ${join(", ", [for c in local.claims : "${c.what} (${c.group.cpus} of ${c.machine.default_vcpus})" if c.group.cpus > c.machine.default_vcpus])}."
    }
    precondition {
      condition     = alltrue([for c in local.claims : c.group.memory_gib * 1024 <= c.machine.memory_size])
      error_message = "More memory than the machine has: ${join(", ", [for c in local.claims : "${c.what} (${c.group.memory_gib} of ${floor(c.machine.memory_size / 1024)} GiB)" if c.group.memory_gib * 1024 > c.machine.memory_size])}."
    }
    precondition {
      condition     = alltrue([for c in local.claims : c.group.gpus == try(sum([for gpu in c.machine.gpus : gpu.count]), 0)])
      error_message = "GPUs that are not there, or are paid for and not used: ${join(", ", [for c in local.claims : "${c.what} (${c.group.gpus} of ${try(sum([for gpu in c.machine.gpus : gpu.count]), 0)})" if c.group.gpus != try(sum([for gpu in c.machine.gpus : gpu.count]), 0)])}."
    }
    precondition {
      condition     = alltrue([for c in local.claims : !c.group.efa || c.machine.efa_supported])
      error_message = "No EFA there: ${join(", ", [for c in local.claims : c.what if c.group.efa && !c.machine.efa_supported])}; set efa = false."
    }
  }
}

resource "aws_placement_group" "students" {
  count    = local.several_students ? 1 : 0
  name     = "${var.name}-students"
  strategy = "cluster"
}

check "several_students_use_what_their_network_has" {
  assert {
    condition     = alltrue([for c in local.claims : c.group.role != "student" || c.group.max == 1 || c.group.efa || !c.machine.efa_supported])
    error_message = "Students of several nodes have EFA and do not use it; set efa = true: ${join(", ", [for c in local.claims : c.what if c.group.role == "student" && c.group.max > 1 && !c.group.efa && c.machine.efa_supported])}."
  }
}
