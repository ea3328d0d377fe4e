locals {
  night = var.night_stop == null ? 0 : 1
}

resource "aws_scheduler_schedule" "night_stop" {
  #checkov:skip=CKV_AWS_297:the input is an instance id
  count                        = local.night
  name                         = "${var.name}-night-stop"
  description                  = "Stops the head of the Ray cluster ${var.name}"
  schedule_expression          = var.night_stop.cron
  schedule_expression_timezone = var.night_stop.timezone

  flexible_time_window {
    mode = "OFF"
  }

  target {
    arn      = "arn:${data.aws_partition.current.partition}:scheduler:::aws-sdk:ec2:stopInstances"
    role_arn = aws_iam_role.night_stop[0].arn
    input    = jsonencode({ InstanceIds = [var.head_instance_id] })
    retry_policy {
      maximum_retry_attempts = 5
    }
  }
}

resource "aws_iam_role" "night_stop" {
  count = local.night
  name  = "${var.name}-night-stop"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "scheduler.amazonaws.com" }
      Condition = { StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.current.account_id } }
    }]
  })
}

resource "aws_iam_role_policy" "night_stop" {
  count = local.night
  name  = "stop-the-head"
  role  = aws_iam_role.night_stop[0].id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect   = "Allow"
      Action   = ["ec2:StopInstances"]
      Resource = ["arn:${data.aws_partition.current.partition}:ec2:${data.aws_region.current.id}:${data.aws_caller_identity.current.account_id}:instance/${var.head_instance_id}"]
    }]
  })
}
