locals {
  image_env = [{ name = "OMP_NUM_THREADS", value = "1" }]
  # what the autoscaler may bring, for the check before a job: Ray does not say it
  most = { name = "PATHRYOSHKA_CLUSTER", value = jsonencode({
    available_node_types = { for name, g in var.groups : name => { resources = g.ray_resources, max_workers = g.max } }
  }) }

  selectors = {
    for name, g in var.groups : name => merge(
      { for k, v in { "cloud.google.com/gke-accelerator" = try(var.gke_accelerators[g.accelerator], "unknown") } : k => v if var.platform == "gke" && g.gpus > 0 },
      { for k, v in { "cloud.google.com/gke-spot" = "true" } : k => v if var.platform == "gke" && g.spot && !g.on_demand_fallback },
      lookup(var.node_selectors, name, {}),
    )
  }
  affinities = {
    for name, g in var.groups : name => {
      nodeAffinity = {
        requiredDuringSchedulingIgnoredDuringExecution = {
          nodeSelectorTerms = [{
            matchExpressions = [
              { key = "node.kubernetes.io/instance-type", operator = "In", values = g.instance_types },
              { key = "karpenter.sh/capacity-type", operator = "In", values = distinct([for v in g.variants : v.spot ? "spot" : "on-demand"]) },
            ]
          }]
        }
      }
    } if var.platform == "eks"
  }

  worker_groups = [
    for name, g in var.groups : {
      groupName          = name
      replicas           = g.min
      minReplicas        = g.min
      maxReplicas        = g.max
      idleTimeoutSeconds = var.idle_timeout_minutes * 60
      rayStartParams     = {}
      # the CRD takes strings; the autoscaler and `ray start` get the same numbers
      resources = { for k, v in g.ray_resources : k => tostring(v) }
      labels    = g.ray_labels
      template = {
        metadata = { labels = { "pathryoshka.io/role" = g.role } }
        spec = merge({
          serviceAccountName            = var.service_account
          terminationGracePeriodSeconds = 150
          securityContext               = { runAsNonRoot = true, runAsUser = 1000, fsGroup = 1000 }
          containers = [{
            name            = "ray-worker"
            image           = var.image
            env             = local.image_env
            securityContext = { allowPrivilegeEscalation = false }
            resources = {
              for kind in ["requests", "limits"] : kind => merge(
                { cpu = tostring(g.cpus), memory = "${g.memory_gib}Gi" },
                { for k, v in { "nvidia.com/gpu" = tostring(g.gpus) } : k => v if g.gpus > 0 },
              )
            }
            volumeMounts = [{ name = "shm", mountPath = "/dev/shm" }, { name = "scratch", mountPath = "/tmp" }]
          }]
          # Ray's object store lives there: without it blocks go to disk
          volumes = [
            { name = "shm", emptyDir = { medium = "Memory", sizeLimit = "${floor(g.memory_gib * 0.4)}Gi" } },
            { name = "scratch", emptyDir = { sizeLimit = "${g.disk_gib}Gi" } },
          ]
          tolerations = [for t in [{ key = "nvidia.com/gpu", operator = "Exists", effect = "NoSchedule" }] : t if g.gpus > 0]
          },
          { for k, v in { nodeSelector = local.selectors[name] } : k => v if length(local.selectors[name]) > 0 },
          { for k, v in { affinity = try(local.affinities[name], {}) } : k => v if var.platform == "eks" },
        )
      }
    }
  ]

  cluster_spec = {
    rayVersion              = var.ray_version
    enableInTreeAutoscaling = true
    autoscalerOptions       = { version = "v2", idleTimeoutSeconds = var.idle_timeout_minutes * 60, upscalingMode = "Default" }
    authOptions             = { mode = "token" } # the operator makes the secret; `auth_token` in it is the token
    headGroupSpec = {
      serviceType    = "ClusterIP"
      rayStartParams = { num-cpus = "0", dashboard-host = "0.0.0.0" } # behind the ClusterIP and the token; people port-forward
      template = {
        spec = {
          serviceAccountName            = var.service_account
          terminationGracePeriodSeconds = 150
          securityContext               = { runAsNonRoot = true, runAsUser = 1000, fsGroup = 1000 }
          containers = [{
            name            = "ray-head"
            image           = var.image
            env             = concat(local.image_env, [local.most])
            securityContext = { allowPrivilegeEscalation = false }
            resources       = { for kind in ["requests", "limits"] : kind => { cpu = "4", memory = "${var.head_memory_gib}Gi" } }
            ports           = [{ containerPort = 6379, name = "gcs" }, { containerPort = 8265, name = "dashboard" }, { containerPort = 8080, name = "metrics" }]
            volumeMounts    = [{ name = "shm", mountPath = "/dev/shm" }, { name = "scratch", mountPath = "/tmp" }]
          }]
          volumes = [
            { name = "shm", emptyDir = { medium = "Memory", sizeLimit = "4Gi" } },
            { name = "scratch", emptyDir = { sizeLimit = "50Gi" } },
          ]
        }
      }
    }
    workerGroupSpecs = local.worker_groups
  }

  cluster = {
    apiVersion = "ray.io/v1"
    kind       = "RayCluster"
    metadata   = { name = var.name, namespace = var.namespace }
    spec       = local.cluster_spec
  }

  job = var.job == null ? null : {
    apiVersion = "ray.io/v1"
    kind       = "RayJob"
    metadata   = { name = var.job.name, namespace = var.namespace }
    spec = {
      entrypoint               = var.job.entrypoint
      submissionMode           = "K8sJobMode"
      shutdownAfterJobFinishes = true # the default leaves the cluster, and its bill, behind
      ttlSecondsAfterFinished  = 600
      activeDeadlineSeconds    = var.job.deadline_hours * 3600
      backoffLimit             = 2 # the same command goes on where the run stands
      rayClusterSpec           = local.cluster_spec
    }
  }

  # nobody but Ray's own pods may reach the cluster's ports
  network_policy = {
    apiVersion = "networking.k8s.io/v1"
    kind       = "NetworkPolicy"
    metadata   = { name = var.name, namespace = var.namespace }
    spec = {
      podSelector = { matchLabels = { "ray.io/cluster" = var.name } }
      policyTypes = ["Ingress"]
      ingress = [{
        from = [
          { podSelector = { matchLabels = { "ray.io/cluster" = var.name } } },
          { namespaceSelector = {}, podSelector = { matchLabels = { "app.kubernetes.io/name" = "kuberay-operator" } } },
        ]
      }]
    }
  }

  node_pool = {
    apiVersion = "karpenter.sh/v1"
    kind       = "NodePool"
    metadata   = { name = var.name }
    spec = {
      limits     = { "nvidia.com/gpu" = tostring(var.max_gpus) }
      disruption = { consolidationPolicy = "WhenEmpty", consolidateAfter = "300s" }
      template = {
        spec = {
          nodeClassRef = { group = "karpenter.k8s.aws", kind = "EC2NodeClass", name = "default" }
          requirements = [
            { key = "node.kubernetes.io/instance-type", operator = "In", values = sort(distinct(flatten([for g in var.groups : g.instance_types]))) },
            { key = "karpenter.sh/capacity-type", operator = "In", values = ["spot", "on-demand"] },
          ]
        }
      }
    }
  }
}
