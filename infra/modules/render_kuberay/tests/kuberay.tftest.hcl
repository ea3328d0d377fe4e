variables {
  name            = "lab"
  ray_version     = "2.60.0"
  image           = "registry.example/pathryoshka@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  platform        = "eks"
  service_account = "pathryoshka"
  max_gpus        = 12
  job             = { name = "distil", entrypoint = "python -m ray_jobs.distill --config run.yaml", deadline_hours = 48 }
}

run "groups" {
  command = plan
  module {
    source = "../worker_groups"
  }
  variables {
    max_gpus = 16
    worker_groups = [
      { name = "teacher", role = "teacher", instance_types = ["g6.2xlarge"], cpus = 6, memory_gib = 26, gpus = 1, accelerator = "L4", max = 4, spot = true },
      { name = "readers", role = "cpu", instance_types = ["m7i.4xlarge"], cpus = 14, memory_gib = 56, max = 2 },
    ]
  }
}

run "gpu_groups" {
  command = plan
  variables {
    groups = run.groups.groups
  }

  assert {
    condition     = yamldecode(output.raycluster_yaml).spec.workerGroupSpecs[1].template.spec.containers[0].resources.limits["nvidia.com/gpu"] == "1" && !can(yamldecode(output.raycluster_yaml).spec.workerGroupSpecs[0].template.spec.containers[0].resources.limits["nvidia.com/gpu"])
    error_message = "GPUs only where a group has them"
  }
  assert {
    condition     = yamldecode(output.raycluster_yaml).spec.workerGroupSpecs[1].resources["teacher"] == "1" && yamldecode(output.raycluster_yaml).spec.workerGroupSpecs[1].labels["role"] == "teacher"
    error_message = "the role is a resource (as a string) and a label"
  }
  assert {
    condition     = join(" ", yamldecode(output.raycluster_yaml).spec.workerGroupSpecs[1].template.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[1].values) == "spot on-demand"
    error_message = "spot, and on demand where there is none"
  }
}

run "safe_by_default" {
  command = plan
  variables {
    groups = run.groups.groups
  }

  assert {
    condition     = yamldecode(output.raycluster_yaml).spec.authOptions.mode == "token" && yamldecode(output.raycluster_yaml).spec.headGroupSpec.serviceType == "ClusterIP"
    error_message = "a token, and no address outside of the cluster"
  }
  assert {
    condition     = yamldecode(output.rayjob_yaml).spec.shutdownAfterJobFinishes && yamldecode(output.rayjob_yaml).spec.activeDeadlineSeconds == 172800
    error_message = "a job ends, and takes its machines with it"
  }
  assert {
    condition     = yamldecode(output.node_pool_yaml).spec.limits["nvidia.com/gpu"] == "12"
    error_message = "Karpenter's limit"
  }
  assert {
    condition     = alltrue([for g in yamldecode(output.raycluster_yaml).spec.workerGroupSpecs : g.template.spec.securityContext.runAsNonRoot])
    error_message = "no root"
  }
}

run "on_gke" {
  command = plan
  variables {
    groups   = run.groups.groups
    platform = "gke"
  }

  assert {
    condition     = yamldecode(output.raycluster_yaml).spec.workerGroupSpecs[1].template.spec.nodeSelector["cloud.google.com/gke-accelerator"] == "nvidia-l4" && output.node_pool_yaml == null
    error_message = "GKE's own labels, no Karpenter"
  }
}

run "on_prem" {
  command = plan
  variables {
    groups         = run.groups.groups
    platform       = "onprem"
    node_selectors = { teacher = { "lab/gpu" = "l4" } }
  }

  assert {
    condition     = yamldecode(output.raycluster_yaml).spec.workerGroupSpecs[1].template.spec.nodeSelector["lab/gpu"] == "l4" && !can(yamldecode(output.raycluster_yaml).spec.workerGroupSpecs[1].template.spec.affinity)
    error_message = "only the lab's own labels"
  }
}

run "refuses_an_accelerator_that_gke_has_no_name_for" {
  command = plan
  variables {
    groups           = run.groups.groups
    platform         = "gke"
    gke_accelerators = {}
  }
  expect_failures = [output.raycluster_yaml]
}

run "refuses_another_platform" {
  command = plan
  variables {
    groups   = run.groups.groups
    platform = "openshift"
  }
  expect_failures = [var.platform]
}

run "refuses_a_version_of_no_form" {
  command = plan
  variables {
    groups      = run.groups.groups
    ray_version = "latest"
  }
  expect_failures = [var.ray_version]
}
