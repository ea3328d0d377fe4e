# What tells, and what stops. Hard limits are elsewhere: max_gpus, the list of types that the head may start, idle times.

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

resource "aws_budgets_budget" "monthly" {
  name         = "${var.name}-monthly"
  budget_type  = "COST"
  limit_amount = tostring(var.monthly_budget_usd)
  limit_unit   = "USD"
  time_unit    = "MONTHLY"

  dynamic "cost_filter" {
    for_each = var.budget_scope == "cluster" ? [join("$", ["user:ray-cluster-name", var.name])] : []
    content {
      name   = "TagKeyValue"
      values = [cost_filter.value]
    }
  }

  dynamic "notification" {
    for_each = { half = ["ACTUAL", 50], most = ["ACTUAL", 80], all = ["ACTUAL", 100], soon = ["FORECASTED", 100] }
    content {
      notification_type          = notification.value[0]
      threshold                  = notification.value[1]
      threshold_type             = "PERCENTAGE"
      comparison_operator        = "GREATER_THAN"
      subscriber_email_addresses = var.alert_emails
    }
  }
}

resource "aws_sns_topic" "alerts" {
  #checkov:skip=CKV_AWS_26:CloudWatch cannot publish to a topic under AWS' own key, and the message holds no secret
  name = "${var.name}-alerts"
}

resource "aws_sns_topic_subscription" "mail" {
  for_each  = toset(var.alert_emails)
  topic_arn = aws_sns_topic.alerts.arn
  protocol  = "email"
  endpoint  = each.key
}

# Minutes late where the budget is hours late, and it also sees machines that the autoscaler lost.
resource "aws_cloudwatch_metric_alarm" "gpus" {
  count               = var.gpu_hours_in_a_row == null ? 0 : 1
  alarm_name          = "${var.name}-gpus-never-idle"
  alarm_description   = "GPU machines have run in every one of the last ${var.gpu_hours_in_a_row} hours in this region"
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  evaluation_periods  = var.gpu_hours_in_a_row
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.alerts.arn]

  metric_query {
    id          = "gpus"
    expression  = "SUM(FILL(METRICS(), 0))"
    label       = "vCPUs of running GPU machines"
    return_data = true
  }

  dynamic "metric_query" {
    for_each = { g = "G/OnDemand", gs = "G/Spot", p = "P/OnDemand", ps = "P/Spot" }
    content {
      id          = metric_query.key
      return_data = false
      metric {
        namespace   = "AWS/Usage"
        metric_name = "ResourceCount"
        period      = 3600
        stat        = "Minimum"
        dimensions  = { Service = "EC2", Type = "Resource", Resource = "vCPU", Class = metric_query.value }
      }
    }
  }
}
