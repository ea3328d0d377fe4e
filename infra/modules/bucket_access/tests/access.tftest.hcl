variables {
  bucket_arn = "arn:aws:s3:::lab-tiles"
}

run "folders_and_nothing_else" {
  assert {
    condition = alltrue(flatten([for s in output.statements : [for r in s.Resource :
    can(regex("^arn:aws:s3:::lab-tiles(/[a-z]+/\\*)?$", r))]]))
    error_message = "a statement reaches beyond the folders of jobs"
  }
  assert {
    condition     = alltrue(flatten([for s in output.statements : [for a in s.Action : !strcontains(a, "*") && (strcontains(a, "Object") || strcontains(a, "Multipart") || s.Resource == ["arn:aws:s3:::lab-tiles"])]]))
    error_message = "an action is wider than it need be"
  }
  assert {
    condition     = !strcontains(jsonencode(output.statements), "kms:")
    error_message = "rights to a key that there is not"
  }
}

run "only_named_folders" {
  variables { prefixes = ["runs/"] }
  assert {
    condition     = one([for s in output.statements : one(s.Resource) if s.Sid == "Objects"]) == "arn:aws:s3:::lab-tiles/runs/*"
    error_message = "other folders than those named"
  }
}

run "refuses_the_whole_bucket" {
  command = plan
  variables { prefixes = ["*"] }
  expect_failures = [var.prefixes]
}

run "refuses_the_config_folder" {
  command = plan
  variables { prefixes = ["runs/", "config/"] }
  expect_failures = [var.prefixes]
}

run "refuses_all_buckets" {
  command = plan
  variables { bucket_arn = "arn:aws:s3:::*" }
  expect_failures = [var.bucket_arn]
}
