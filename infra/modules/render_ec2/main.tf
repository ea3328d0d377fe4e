locals {
  common = {
    name            = var.name
    region          = var.region
    image           = var.image
    token_parameter = var.token_parameter
    tls             = var.tls
    tls_env         = var.tls ? "-e RAY_USE_TLS=1 -e RAY_TLS_SERVER_CERT=/etc/ray/tls/tls.crt -e RAY_TLS_SERVER_KEY=/etc/ray/tls/tls.key -e RAY_TLS_CA_CERT=/etc/ray/tls/ca.crt -v /etc/ray/tls:/etc/ray/tls:ro" : ""
  }

  # one Ray node type for each group, instance type and market, all with the group's resources. Ray starts the one with
  # the highest priority that did not just fail: that is the way from spot to on demand.
  variants = merge([
    for name, g in var.groups : {
      for i, v in g.variants : "${name}-${replace(v.instance_type, ".", "-")}${v.spot ? "-spot" : ""}" => {
        group    = g
        type     = v.instance_type
        spot     = v.spot
        priority = length(g.variants) - i
        min      = i == 0 ? g.min : 0
      }
    }
  ]...)

  # across nodes NCCL talks through EFA where there is one, else through the one network card; the job prints what it finds
  nccl = {
    for name, v in local.variants : name => v.group.role != "student" ? "" : (
      v.group.efa ? "-e FI_PROVIDER=efa -e NCCL_DEBUG=WARN --device /dev/infiniband" : "-e NCCL_SOCKET_IFNAME=^lo,docker0 -e NCCL_DEBUG=WARN"
    )
  }

  worker_user_data = {
    for name, v in local.variants : name => templatefile("${path.module}/templates/worker.sh.tftpl", merge(local.common, {
      head_ip   = var.head_private_ip
      node_type = name
      gpus      = v.group.gpus
      resources = jsonencode({ for k, n in v.group.ray_resources : k => n if !contains(["CPU", "GPU"], k) })
      labels    = join(",", [for k, l in v.group.ray_labels : "${k}=${l}"])
      cpus      = v.group.ray_resources.CPU
      nccl      = local.nccl[name]
    }))
  }

  node_types = {
    for name, v in local.variants : name => {
      min_workers = v.min
      max_workers = v.group.max
      priority    = v.priority
      resources   = v.group.ray_resources
      labels      = v.group.ray_labels
      node_config = merge(
        {
          ImageId                           = var.ami_id
          InstanceType                      = v.type
          IamInstanceProfile                = { Arn = var.worker_instance_profile_arn }
          InstanceInitiatedShutdownBehavior = "terminate"
          MetadataOptions                   = { HttpTokens = "required", HttpEndpoint = "enabled", HttpPutResponseHopLimit = 2, InstanceMetadataTags = "enabled" }
          BlockDeviceMappings = [{
            DeviceName = "/dev/sda1"
            Ebs        = { VolumeSize = v.group.disk_gib, VolumeType = "gp3", Encrypted = true, DeleteOnTermination = true }
          }]
          UserData = local.worker_user_data[name]
          TagSpecifications = [{
            ResourceType = "instance"
            Tags         = [for k, t in merge(var.tags, { "pathryoshka-group" = v.group.name }) : { Key = k, Value = t }]
          }]
        },
        # an object of one part or another: Terraform wants both arms of a condition to have one type
        { for k, x in { NetworkInterfaces = [{ DeviceIndex = 0, InterfaceType = "efa", SubnetId = var.subnet_ids[0], Groups = var.security_group_ids, DeleteOnTermination = true }] } : k => x if v.group.efa },
        { for k, x in { SubnetIds = var.subnet_ids, SecurityGroupIds = var.security_group_ids } : k => x if !v.group.efa },
        { for k, x in { InstanceMarketOptions = { MarketType = "spot", SpotOptions = { SpotInstanceType = "one-time", InstanceInterruptionBehavior = "terminate" } } } : k => x if v.spot },
        { for k, x in { CapacityReservationSpecification = { CapacityReservationTarget = { CapacityReservationId = v.group.capacity_reservation_id } } } : k => x if v.group.capacity_reservation_id != null },
        { for k, x in { Placement = { GroupName = var.placement_group } } : k => x if v.group.role == "student" && var.placement_group != null },
      )
    }
  }

  cluster = {
    cluster_name         = var.name
    max_workers          = var.max_workers
    idle_timeout_minutes = var.idle_timeout_minutes
    upscaling_speed      = 1
    provider = {
      type                  = "aws"
      region                = var.region
      use_internal_ips      = true
      cache_stopped_nodes   = false # a stopped node still bills its disk
      disable_node_updaters = true  # nodes boot by themselves: no SSH
    }
    auth = { ssh_user = "nobody" }
    available_node_types = merge(local.node_types, {
      head = { min_workers = 0, max_workers = 0, resources = { CPU = 0 }, node_config = {} }
    })
    head_node_type = "head"
    # a missing list here is filled with Ray's defaults, which install a nightly build
    initialization_commands       = []
    setup_commands                = []
    head_setup_commands           = []
    worker_setup_commands         = []
    head_start_ray_commands       = []
    worker_start_ray_commands     = []
    file_mounts                   = {}
    cluster_synced_files          = []
    file_mounts_sync_continuously = false
  }

  head_user_data = templatefile("${path.module}/templates/head.sh.tftpl", merge(local.common, {
    config_uri   = var.config_uri
    idle_minutes = var.head_idle_shutdown_minutes
  }))
}
