mock_provider "aws" {
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::111122223333:role/lab-pods" }
  }
  mock_resource "aws_s3_bucket" {
    defaults = { id = "lab-tiles", arn = "arn:aws:s3:::lab-tiles" }
  }
}

variables {
  name        = "lab"
  region      = "eu-central-1"
  eks_cluster = "research"
  bucket      = "lab-tiles"
  image       = "111122223333.dkr.ecr.eu-central-1.amazonaws.com/pathryoshka@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  max_gpus    = 24
  worker_groups = [
    { name = "teacher", role = "teacher", instance_types = ["g6e.2xlarge"], cpus = 6, memory_gib = 52, gpus = 1, accelerator = "L40S", max = 4, spot = true },
    { name = "student", role = "student", instance_types = ["p4d.24xlarge"], cpus = 90, memory_gib = 1000, gpus = 8, accelerator = "A100", max = 2 },
  ]
}

run "wired" {
  assert {
    condition     = yamldecode(output.service_account_yaml).metadata.name == aws_eks_pod_identity_association.pods.service_account && strcontains(output.raycluster_yaml, aws_eks_pod_identity_association.pods.service_account)
    error_message = "the pods run as another account than the one that has the role"
  }
  assert {
    condition     = one(jsondecode(aws_iam_role.pods.assume_role_policy).Statement).Principal == { Service = "pods.eks.amazonaws.com" }
    error_message = "something else than pods may take the role"
  }
  assert {
    condition     = alltrue([for s in jsondecode(aws_iam_role_policy.pods.policy).Statement : alltrue([for a in s.Action : startswith(a, "s3:")])])
    error_message = "pods may do more than reach the bucket"
  }
  assert {
    condition     = output.total_gpus == 20 && length(yamldecode(output.raycluster_yaml).spec.workerGroupSpecs) >= 2
    error_message = "a group is missing"
  }
}

run "refuses_the_default_namespace" {
  command = plan
  variables { namespace = "default" }
  expect_failures = [var.namespace]
}

run "refuses_no_cluster" {
  command = plan
  variables { eks_cluster = "" }
  expect_failures = [var.eks_cluster]
}
