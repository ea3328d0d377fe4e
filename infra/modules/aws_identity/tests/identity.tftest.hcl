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
  override_resource {
    target = aws_iam_role.worker
    values = { arn = "arn:aws:iam::111122223333:role/lab-worker" }
  }
  override_resource {
    target = aws_iam_instance_profile.worker
    values = { arn = "arn:aws:iam::111122223333:instance-profile/lab-worker" }
  }
}

variables {
  name                 = "lab"
  bucket_arn           = "arn:aws:s3:::lab-tiles"
  parameter_arns       = ["arn:aws:ssm:eu-central-1:111122223333:parameter/lab/ray-token"]
  image_repository_arn = "arn:aws:ecr:eu-central-1:111122223333:repository/pathryoshka"
  kms_key_arn          = "arn:aws:kms:eu-central-1:111122223333:key/0a"
  instance_types       = ["g6e.2xlarge", "p4d.24xlarge"]
  subnet_ids           = ["subnet-0a", "subnet-0b"]
  security_group_id    = "sg-0a"
}

run "no_wildcard_actions" {
  assert {
    condition = alltrue(flatten([
      for p in [aws_iam_role_policy.worker, aws_iam_role_policy.head_data, aws_iam_role_policy.head_workers, aws_iam_role_policy.head_session] :
      [for s in jsondecode(p.policy).Statement : [for a in s.Action : !strcontains(a, "*")]]
    ]))
    error_message = "an action has a star"
  }
  assert {
    condition = alltrue(flatten([
      for p in [aws_iam_role_policy.worker, aws_iam_role_policy.head_data, aws_iam_role_policy.head_workers, aws_iam_role_policy.head_session] :
      [for s in jsondecode(p.policy).Statement : s.Effect == "Allow" && (s.Resource != ["*"] || contains(["ImageLogin", "SessionManager", "Look"], s.Sid))]
    ]))
    error_message = "a statement is for every resource although its actions could be restricted"
  }
}

run "the_bucket_by_folder" {
  assert {
    condition = alltrue([for s in jsondecode(aws_iam_role_policy.worker.policy).Statement :
    alltrue([for r in s.Resource : can(regex("^arn:aws:s3:::lab-tiles/[a-z]+/\\*$", r))]) if s.Sid == "Objects"])
    error_message = "workers reach objects outside of their folders"
  }
  assert {
    condition = !anytrue(flatten([for s in jsondecode(aws_iam_role_policy.worker.policy).Statement :
    [for r in s.Resource : strcontains(r, "/config")]]))
    error_message = "a worker reads or writes the autoscaler's config"
  }
  assert {
    condition = !anytrue(flatten([for s in jsondecode(aws_iam_role_policy.head_data.policy).Statement :
    [for r in s.Resource : strcontains(r, "/config") && contains(s.Action, "s3:PutObject")]]))
    error_message = "the head, and so any job, could raise its own limits"
  }
}

run "only_listed_machines_start" {
  assert {
    condition = alltrue([for s in jsondecode(aws_iam_role_policy.head_workers.policy).Statement :
      toset(s.Condition.StringEquals["ec2:InstanceType"]) == toset(["g6e.2xlarge", "p4d.24xlarge"])
      && s.Condition.StringEquals["aws:RequestTag/ray-cluster-name"] == "lab"
      && s.Condition.StringEquals["ec2:MetadataHttpTokens"] == "required"
      && s.Condition.StringEquals["ec2:InstanceProfile"] == "arn:aws:iam::111122223333:instance-profile/lab-worker"
    if contains(s.Action, "ec2:RunInstances") && anytrue([for r in s.Resource : strcontains(r, ":instance/")])])
    error_message = "the head could start a machine of another type, untagged, with IMDSv1 or another role"
  }
  assert {
    condition = alltrue(flatten([for s in jsondecode(aws_iam_role_policy.head_workers.policy).Statement :
      [for r in s.Resource : contains(["arn:aws:ec2:eu-central-1:111122223333:subnet/subnet-0a", "arn:aws:ec2:eu-central-1:111122223333:subnet/subnet-0b"], r) if strcontains(r, ":subnet/")]
    ]))
    error_message = "the head could start machines in another subnet"
  }
  assert {
    condition = alltrue([for s in jsondecode(aws_iam_role_policy.head_workers.policy).Statement :
      s.Condition.StringEquals["ec2:ResourceTag/ray-cluster-name"] == "lab"
    if contains(s.Action, "ec2:TerminateInstances")])
    error_message = "the head could end machines that are not the cluster's"
  }
}

run "passrole_on_the_worker_role_only" {
  assert {
    condition = (
      one([for s in jsondecode(aws_iam_role_policy.head_workers.policy).Statement : one(s.Resource) if contains(s.Action, "iam:PassRole")])
      == "arn:aws:iam::111122223333:role/lab-worker"
    )
    error_message = "PassRole must name the worker role (not its profile) and nothing else"
  }
  assert {
    condition     = !strcontains(aws_iam_role_policy.worker.policy, "ec2:") && !strcontains(aws_iam_role_policy.worker.policy, "iam:")
    error_message = "a worker can start machines or pass roles"
  }
}

run "one_token" {
  assert {
    condition = one([for s in jsondecode(aws_iam_role_policy.worker.policy).Statement : one(s.Resource)
    if contains(s.Action, "ssm:GetParameter")]) == "arn:aws:ssm:eu-central-1:111122223333:parameter/lab/ray-token"
    error_message = "a worker reads other parameters than the cluster's token"
  }
}

run "only_what_is_needed" {
  variables {
    image_repository_arn = null
    kms_key_arn          = null
  }
  assert {
    condition     = !strcontains(aws_iam_role_policy.worker.policy, "ecr:") && !strcontains(aws_iam_role_policy.worker.policy, "kms:")
    error_message = "rights to a repository or key that is not used"
  }
}

run "refuses_any_type" {
  command = plan
  variables { instance_types = ["*"] }
  expect_failures = [var.instance_types]
}

run "refuses_a_family" {
  command = plan
  variables { instance_types = ["p4d.*"] }
  expect_failures = [var.instance_types]
}

run "refuses_all_tokens" {
  command = plan
  variables { parameter_arns = ["arn:aws:ssm:eu-central-1:111122223333:parameter/*"] }
  expect_failures = [var.parameter_arns]
}

run "refuses_all_repositories" {
  command = plan
  variables { image_repository_arn = "*" }
  expect_failures = [var.image_repository_arn]
}

run "refuses_nowhere" {
  command = plan
  variables { subnet_ids = [] }
  expect_failures = [var.subnet_ids]
}
