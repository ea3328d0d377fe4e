output "alerts_topic_arn" {
  description = "For further alarms; each address confirms its subscription once."
  value       = aws_sns_topic.alerts.arn
}
