variable "name" {
  description = "Name of the cluster."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,29}$", var.name))
    error_message = "name: 2 to 30 lower-case letters, digits and dashes, starting with a letter."
  }
}

variable "monthly_budget_usd" {
  description = "What the account may cost a month before mails go out; AWS tells hours late, and stops nothing."
  type        = number
  validation {
    condition     = var.monthly_budget_usd > 0
    error_message = "monthly_budget_usd: more than 0; a budget of nothing warns at the first cent and is then ignored."
  }
}

variable "budget_scope" {
  description = <<-EOT
    "account" counts all that the account costs. "cluster" counts what carries the cluster's tag, and counts nothing
    until ray-cluster-name is activated as a cost allocation tag in the billing console.
  EOT
  type        = string
  default     = "account"
  validation {
    condition     = contains(["account", "cluster"], var.budget_scope)
    error_message = "budget_scope: account or cluster."
  }
}

variable "alert_emails" {
  description = "Who is told."
  type        = list(string)
  validation {
    condition     = length(var.alert_emails) >= 1 && length(var.alert_emails) <= 10 && alltrue([for e in var.alert_emails : can(regex("^[^@\\s]+@[^@\\s]+\\.[^@\\s]+$", e))])
    error_message = "alert_emails: 1 to 10 addresses; a budget that tells nobody is none."
  }
}

variable "gpu_hours_in_a_row" {
  description = "GPU machines that run in every one of so many hours raise an alarm; null for none."
  type        = number
  default     = 24
  validation {
    condition     = var.gpu_hours_in_a_row == null || try(var.gpu_hours_in_a_row >= 1 && var.gpu_hours_in_a_row <= 168 && floor(var.gpu_hours_in_a_row) == var.gpu_hours_in_a_row, false)
    error_message = "gpu_hours_in_a_row: a whole number from 1 to 168, or null."
  }
}

variable "head_instance_id" {
  description = "The head, which the night stop stops."
  type        = string
}

variable "night_stop" {
  description = "Stops the head at this time, whatever runs: its workers end themselves a minute later. Null for never."
  type = object({
    cron     = string
    timezone = string
  })
  default = null
  validation {
    condition     = var.night_stop == null || can(regex("^cron\\(([^ ]+ ){5}[^ ]+\\)$", var.night_stop.cron))
    error_message = "night_stop: cron with six fields, such as cron(0 22 * * ? *)."
  }
  validation {
    condition     = var.night_stop == null || can(regex("^(UTC|[A-Z][A-Za-z]+/[A-Za-z_/-]+)$", var.night_stop.timezone))
    error_message = "night_stop: a timezone such as Europe/Berlin or UTC."
  }
}
