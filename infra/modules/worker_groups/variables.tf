variable "worker_groups" {
  description = <<-EOT
    Kinds of machines, from none to `max` of each. A role becomes one unit of a Ray resource of its name on every node:
    jobs ask for a thousandth of it (`resources: {teacher: 0.001}`) and so choose the pool, while GPUs do the counting.
    `cpus` and `memory_gib` are what Ray may use: leave one or two CPUs and a tenth of the memory to the system.
  EOT
  type = list(object({
    name                    = string
    role                    = string
    instance_types          = list(string)
    cpus                    = number
    memory_gib              = number
    gpus                    = optional(number, 0)
    accelerator             = optional(string)
    min                     = optional(number, 0)
    max                     = number
    spot                    = optional(bool, false)
    on_demand_fallback      = optional(bool, true)
    capacity_reservation_id = optional(string)
    capacity_block          = optional(bool, false)
    efa                     = optional(bool, false)
    efa_cards               = optional(number, 1)
    resources               = optional(map(number), {})
    labels                  = optional(map(string), {})
    disk_gib                = optional(number, 200)
  }))

  validation {
    condition     = length(var.worker_groups) > 0
    error_message = "worker_groups is empty: name at least one group of machines."
  }
  validation {
    condition     = length(distinct(var.worker_groups[*].name)) == length(var.worker_groups)
    error_message = "worker_groups: two groups have the same name."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : can(regex("^[a-z][a-z0-9-]{0,30}$", g.name))])
    error_message = "worker_groups[].name: lower-case letters, digits and '-', at most 31, a letter first."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : g.name != "head"])
    error_message = "worker_groups[].name: 'head' is the head's."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : contains(["teacher", "student", "cpu"], g.role)])
    error_message = "worker_groups[].role is teacher, student or cpu."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : length(g.instance_types) > 0])
    error_message = "worker_groups[].instance_types is empty."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : length(distinct(g.instance_types)) == length(g.instance_types)])
    error_message = "worker_groups[].instance_types names one type twice."
  }
  validation {
    condition     = alltrue(flatten([for g in var.worker_groups : [for t in g.instance_types : can(regex("^[a-z][a-z0-9-]*\\.[a-z0-9-]+$", t))]]))
    error_message = "worker_groups[].instance_types: a family and a size, e.g. g6e.2xlarge; no wildcards."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : g.cpus >= 1 && floor(g.cpus) == g.cpus])
    error_message = "worker_groups[].cpus is a whole number of at least 1."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : g.memory_gib >= 1])
    error_message = "worker_groups[].memory_gib is at least 1."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : g.gpus >= 0 && g.gpus <= 16 && floor(g.gpus) == g.gpus])
    error_message = "worker_groups[].gpus is a whole number from 0 to 16."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : (g.role == "cpu") == (g.gpus == 0)])
    error_message = "worker_groups[].gpus: teachers and students have at least one, the role cpu has none."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : g.gpus == 0 || can(regex("^[A-Z][A-Za-z0-9-]*$", g.accelerator))])
    error_message = "worker_groups[].accelerator: groups with GPUs say which, as Ray writes it, e.g. L40S, A100, H100."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : g.gpus > 0 || g.accelerator == null])
    error_message = "worker_groups[].accelerator: a group without GPUs has none."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : g.min >= 0 && floor(g.min) == g.min])
    error_message = "worker_groups[].min is a whole number of at least 0."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : g.max >= 1 && floor(g.max) == g.max])
    error_message = "worker_groups[].max is a whole number of at least 1."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : g.min <= g.max])
    error_message = "worker_groups[].min is larger than max."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : g.role != "student" || !g.spot])
    error_message = "worker_groups[].spot: students run on demand or in a reservation; losing one stops all of them."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : g.capacity_reservation_id == null || !g.spot])
    error_message = "worker_groups[].capacity_reservation_id: reserved capacity is not spot."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : g.capacity_reservation_id == null || can(regex("^cr-[0-9a-f]+$", g.capacity_reservation_id))])
    error_message = "worker_groups[].capacity_reservation_id: an id such as cr-0123abcd."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : g.capacity_reservation_id == null || length(g.instance_types) == 1])
    error_message = "worker_groups[].capacity_reservation_id: a reservation is of one instance type."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : !g.capacity_block || g.capacity_reservation_id != null])
    error_message = "worker_groups[].capacity_block: say which in capacity_reservation_id."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : g.efa_cards >= 1 && g.efa_cards <= 32 && floor(g.efa_cards) == g.efa_cards && (g.efa || g.efa_cards == 1)])
    error_message = "worker_groups[].efa_cards is a whole number from 1 to 32 (p4d has 4, p5 has 32), and needs efa."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : !g.efa || g.role == "student"])
    error_message = "worker_groups[].efa: only students talk to each other enough for it."
  }
  validation {
    condition     = alltrue(flatten([for g in var.worker_groups : [for k, v in g.resources : v >= 1 && floor(v) == v]]))
    error_message = "worker_groups[].resources: whole numbers of at least 1 (Ray's own limit)."
  }
  validation {
    condition     = alltrue(flatten([for g in var.worker_groups : [for k, v in g.resources : !contains(["CPU", "GPU", "memory", "object_store_memory", "teacher", "student", "cpu"], k)]]))
    error_message = "worker_groups[].resources: CPU, GPU, memory and the roles are set from the other fields."
  }
  validation {
    condition     = alltrue(flatten([for g in var.worker_groups : [for k, v in g.labels : can(regex("^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", k)) && can(regex("^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", v))]]))
    error_message = "worker_groups[].labels: letters, digits, '.', '_' and '-', without a prefix (ray.io/ is Ray's)."
  }
  validation {
    condition     = alltrue([for g in var.worker_groups : g.disk_gib >= 50 && g.disk_gib <= 16000 && floor(g.disk_gib) == g.disk_gib])
    error_message = "worker_groups[].disk_gib is a whole number from 50 to 16000."
  }
}

variable "max_gpus" {
  description = "The most GPUs that all groups together may ever start: the first guard of the bill."
  type        = number

  validation {
    condition     = var.max_gpus >= 0 && floor(var.max_gpus) == var.max_gpus
    error_message = "max_gpus is a whole number of at least 0."
  }
}
