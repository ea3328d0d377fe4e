# The only place where roles become Ray resources. Both renderings read `groups`, so they cannot differ.

locals {
  groups = {
    for g in var.worker_groups : g.name => merge(g, {
      ray_resources = merge(
        { CPU = g.cpus, (g.role) = 1 },
        g.gpus > 0 ? { GPU = g.gpus, "accelerator_type:${g.accelerator}" = 1 } : {},
        g.resources,
      )
      ray_labels = merge({ role = g.role, group = g.name }, g.labels)
      # what may be started for this group, the most wanted first: spot in every type, then on demand in every type
      variants = concat(
        g.spot ? [for t in g.instance_types : { instance_type = t, spot = true }] : [],
        !g.spot || g.on_demand_fallback ? [for t in g.instance_types : { instance_type = t, spot = false }] : [],
      )
    })
  }
  total_gpus = sum([for g in var.worker_groups : g.gpus * g.max])
}
