locals {
  common = {
    name            = var.name
    region          = var.region
    image           = var.image
    token_parameter = var.token_parameter
    tls             = var.tls ? templatefile("${path.module}/templates/tls.sh.tftpl", { region = var.region, ca_parameter = var.ca_parameter }) : ""
    tls_env         = var.tls ? "-e RAY_USE_TLS=1 -e RAY_TLS_SERVER_CERT=/etc/ray/tls/tls.crt -e RAY_TLS_SERVER_KEY=/etc/ray/tls/tls.key -e RAY_TLS_CA_CERT=/etc/ray/tls/ca.crt -v /etc/ray/tls:/etc/ray/tls:ro" : ""
  }

  # One Ray node type for each group, so that a group has one maximum. How it is started at first is in its node_config;
  # what to try where EC2 refuses that (another type, on demand instead of spot) is for ec2_provider.py, see there.
  market = {
    for name, g in var.groups : name => [
      for v in g.variants : { for option, value in {
        MarketType  = v.spot ? "spot" : g.capacity_block ? "capacity-block" : null
        SpotOptions = v.spot ? { SpotInstanceType = "one-time", InstanceInterruptionBehavior = "terminate" } : null
      } : option => value if value != null }
    ]
  }
  next_best = {
    for name, g in var.groups : name => [
      for i, v in g.variants : { InstanceType = v.instance_type, InstanceMarketOptions = length(local.market[name][i]) > 0 ? local.market[name][i] : null } if i > 0
    ]
  }

  # across nodes NCCL talks through EFA where there is one, else through the one network card; the job prints what it finds
  nccl = {
    for name, g in var.groups : name => g.role != "student" ? "" : (
      g.efa ? "-e FI_PROVIDER=efa -e NCCL_DEBUG=WARN --device /dev/infiniband" : "-e NCCL_SOCKET_IFNAME=^lo,docker0 -e NCCL_DEBUG=WARN"
    )
  }
  # the first card has the address, the others carry only the fabric's traffic
  cards = {
    for name, g in var.groups : name => [
      for i in range(g.efa_cards) : {
        NetworkCardIndex    = i
        DeviceIndex         = i == 0 ? 0 : 1
        InterfaceType       = i == 0 ? "efa" : "efa-only"
        SubnetId            = var.subnet_ids[0]
        Groups              = var.security_group_ids
        DeleteOnTermination = true
      }
    ]
  }

  worker_user_data = {
    for name, g in var.groups : name => templatefile("${path.module}/templates/worker.sh.tftpl", merge(local.common, {
      head_ip   = var.head_private_ip
      node_type = name
      gpus      = g.gpus
      resources = jsonencode({ for k, n in g.ray_resources : k => n if !contains(["CPU", "GPU"], k) })
      labels    = join(",", [for k, l in g.ray_labels : "${k}=${l}"])
      cpus      = g.ray_resources.CPU
      nccl      = local.nccl[name]
    }))
  }

  node_types = {
    for name, g in var.groups : name => {
      min_workers = g.min
      max_workers = g.max
      resources   = g.ray_resources
      labels      = g.ray_labels
      node_config = merge(
        {
          ImageId                           = var.ami_id
          InstanceType                      = g.variants[0].instance_type
          IamInstanceProfile                = { Arn = var.worker_instance_profile_arn }
          InstanceInitiatedShutdownBehavior = "terminate"
          MetadataOptions                   = { HttpTokens = "required", HttpEndpoint = "enabled", HttpPutResponseHopLimit = 2, InstanceMetadataTags = "enabled" }
          BlockDeviceMappings = [{
            DeviceName = "/dev/sda1"
            Ebs        = { VolumeSize = g.disk_gib, VolumeType = "gp3", Encrypted = true, DeleteOnTermination = true }
          }]
          UserData = local.worker_user_data[name]
          TagSpecifications = [{
            ResourceType = "instance"
            Tags         = [for k, t in merge(var.tags, { "pathryoshka-group" = name }) : { Key = k, Value = t }]
          }]
        },
        # Ray takes SubnetIds away and asks for it also where interfaces name their own
        { SubnetIds = var.subnet_ids },
        # an object of one part or another: Terraform wants both arms of a condition to have one type
        { for k, x in { NetworkInterfaces = local.cards[name] } : k => x if g.efa },
        { for k, x in { SecurityGroupIds = var.security_group_ids } : k => x if !g.efa },
        { for k, x in { InstanceMarketOptions = local.market[name][0] } : k => x if length(x) > 0 },
        { for k, x in { CapacityReservationSpecification = { CapacityReservationTarget = { CapacityReservationId = g.capacity_reservation_id } } } : k => x if g.capacity_reservation_id != null },
        { for k, x in { Placement = { GroupName = var.placement_group } } : k => x if g.role == "student" && var.placement_group != null },
      )
    }
  }

  cluster = {
    cluster_name         = var.name
    max_workers          = var.max_workers
    idle_timeout_minutes = var.idle_timeout_minutes
    upscaling_speed      = 1
    provider = {
      type                  = "external"
      module                = "ec2_provider.Provider"
      next_best             = local.next_best
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
    provider     = file("${path.module}/ec2_provider.py")
  }))
}
