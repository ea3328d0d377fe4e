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
  mock_resource "aws_sns_topic" {
    defaults = { arn = "arn:aws:sns:eu-central-1:111122223333:lab-alerts" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::111122223333:role/lab-night-stop" }
  }
}

variables {
  name               = "lab"
  monthly_budget_usd = 500
  alert_emails       = ["a@example.org", "b@example.org"]
  head_instance_id   = "i-0123456789abcdef0"
}

run "the_budget_tells_in_time" {
  assert {
    condition     = aws_budgets_budget.monthly.limit_amount == "500" && aws_budgets_budget.monthly.time_unit == "MONTHLY"
    error_message = "another budget than the one named"
  }
  assert {
    condition     = toset([for n in aws_budgets_budget.monthly.notification : "${n.notification_type} ${n.threshold}"]) == toset(["ACTUAL 50", "ACTUAL 80", "ACTUAL 100", "FORECASTED 100"])
    error_message = "a warning is missing"
  }
  assert {
    condition     = alltrue([for n in aws_budgets_budget.monthly.notification : toset(n.subscriber_email_addresses) == toset(["a@example.org", "b@example.org"])])
    error_message = "somebody is not told"
  }
  assert {
    condition     = length(aws_budgets_budget.monthly.cost_filter) == 0
    error_message = "by default a budget counts the whole account: a tag that is not activated counts nothing"
  }
}

run "gpus_that_never_stop_raise_an_alarm" {
  assert {
    condition     = aws_cloudwatch_metric_alarm.gpus[0].evaluation_periods == 24 && aws_cloudwatch_metric_alarm.gpus[0].threshold == 0
    error_message = "an alarm at another time than after 24 hours"
  }
  assert {
    condition = toset(flatten([for q in aws_cloudwatch_metric_alarm.gpus[0].metric_query :
    [for m in q.metric : m.dimensions["Class"] if m.period == 3600 && m.stat == "Minimum"]])) == toset(["G/OnDemand", "G/Spot", "P/OnDemand", "P/Spot"])
    error_message = "a kind of GPU machine is not counted"
  }
  assert {
    condition     = one(aws_cloudwatch_metric_alarm.gpus[0].alarm_actions) == aws_sns_topic.alerts.arn && length(aws_sns_topic_subscription.mail) == 2
    error_message = "the alarm tells nobody"
  }
}

run "no_night_stop_unless_asked" {
  assert {
    condition     = length(aws_scheduler_schedule.night_stop) == 0 && length(aws_iam_role.night_stop) == 0
    error_message = "a run of several days would be stopped in its first night"
  }
}

run "night_stop" {
  variables {
    night_stop         = { cron = "cron(0 22 * * ? *)", timezone = "Europe/Berlin" }
    gpu_hours_in_a_row = null
    budget_scope       = "cluster"
  }
  assert {
    condition     = jsondecode(one(aws_scheduler_schedule.night_stop[0].target).input) == { InstanceIds = ["i-0123456789abcdef0"] }
    error_message = "it stops something else than the head"
  }
  assert {
    condition     = one(aws_scheduler_schedule.night_stop[0].target).arn == "arn:aws:scheduler:::aws-sdk:ec2:stopInstances" && aws_scheduler_schedule.night_stop[0].schedule_expression_timezone == "Europe/Berlin"
    error_message = "it does something else, or at another hour"
  }
  assert {
    condition = one(jsondecode(aws_iam_role_policy.night_stop[0].policy).Statement) == {
      Effect   = "Allow"
      Action   = ["ec2:StopInstances"]
      Resource = ["arn:aws:ec2:eu-central-1:111122223333:instance/i-0123456789abcdef0"]
    }
    error_message = "its role may do more than stop the head"
  }
  assert {
    condition     = length(aws_cloudwatch_metric_alarm.gpus) == 0
    error_message = "an alarm that was switched off"
  }
  assert {
    condition     = one(one(aws_budgets_budget.monthly.cost_filter).values) == join("$", ["user:ray-cluster-name", "lab"])
    error_message = "the budget counts something else than the cluster"
  }
}

run "refuses_a_budget_of_nothing" {
  command = plan
  variables { monthly_budget_usd = 0 }
  expect_failures = [var.monthly_budget_usd]
}

run "refuses_to_tell_nobody" {
  command = plan
  variables { alert_emails = [] }
  expect_failures = [var.alert_emails]
}

run "refuses_what_is_no_address" {
  command = plan
  variables { alert_emails = ["me"] }
  expect_failures = [var.alert_emails]
}

run "refuses_unix_cron" {
  command = plan
  variables { night_stop = { cron = "0 22 * * *", timezone = "UTC" } }
  expect_failures = [var.night_stop]
}

run "refuses_a_zone_that_is_none" {
  command = plan
  variables { night_stop = { cron = "cron(0 22 * * ? *)", timezone = "at night" } }
  expect_failures = [var.night_stop]
}

run "refuses_an_alarm_beyond_a_week" {
  command = plan
  variables { gpu_hours_in_a_row = 200 }
  expect_failures = [var.gpu_hours_in_a_row]
}

run "refuses_an_unknown_scope" {
  command = plan
  variables { budget_scope = "team" }
  expect_failures = [var.budget_scope]
}
