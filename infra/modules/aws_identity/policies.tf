locals {
  data = concat(
    module.bucket.statements,
    [
      {
        Sid      = "Secrets"
        Effect   = "Allow"
        Action   = ["ssm:GetParameter"]
        Resource = var.parameter_arns
      },
    ],
    [for arn in compact([var.image_repository_arn]) : {
      Sid      = "Image"
      Effect   = "Allow"
      Action   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
      Resource = [arn]
    }],
    [for arn in compact([var.image_repository_arn]) : {
      Sid      = "ImageLogin" # has no resource to restrict it to
      Effect   = "Allow"
      Action   = ["ecr:GetAuthorizationToken"]
      Resource = ["*"]
    }],
  )

  # read only: a job that could write it could raise its own limits
  head_config = [{
    Sid      = "ReadConfig"
    Effect   = "Allow"
    Action   = ["s3:GetObject"]
    Resource = ["${var.bucket_arn}/config/*"]
  }]

  # what Session Manager's agent needs, less than the managed policy, which reads every parameter of the account
  session = [{
    Sid    = "SessionManager"
    Effect = "Allow"
    Action = [
      "ssm:UpdateInstanceInformation",
      "ssmmessages:CreateControlChannel",
      "ssmmessages:CreateDataChannel",
      "ssmmessages:OpenControlChannel",
      "ssmmessages:OpenDataChannel",
    ]
    Resource = ["*"]
  }]

  workers = [
    {
      Sid      = "Look" # describing knows no resources
      Effect   = "Allow"
      Action   = ["ec2:DescribeInstances", "ec2:DescribeInstanceStatus", "ec2:DescribeInstanceTypes", "ec2:DescribeImages"]
      Resource = ["*"]
    },
    {
      Sid      = "StartWorkers"
      Effect   = "Allow"
      Action   = ["ec2:RunInstances"]
      Resource = ["${local.ec2}:instance/*"]
      Condition = {
        StringEquals = {
          "ec2:InstanceType"                = sort(tolist(var.instance_types))
          "ec2:InstanceProfile"             = aws_iam_instance_profile.worker.arn
          "ec2:MetadataHttpTokens"          = "required"
          "aws:RequestTag/ray-cluster-name" = var.name
        }
      }
    },
    {
      Sid    = "StartWorkersWhere"
      Effect = "Allow"
      Action = ["ec2:RunInstances"]
      Resource = concat(
        [for id in var.subnet_ids : "${local.ec2}:subnet/${id}"],
        ["${local.ec2}:security-group/${var.security_group_id}"],
        [for kind in ["network-interface/*", "volume/*", "spot-instances-request/*", "placement-group/${var.name}-*"] : "${local.ec2}:${kind}"],
        [for id in var.capacity_reservation_ids : "${local.ec2}:capacity-reservation/${id}"],
        ["arn:${data.aws_partition.current.partition}:ec2:${local.region}::image/*"],
      )
    },
    {
      Sid      = "TagAtStart"
      Effect   = "Allow"
      Action   = ["ec2:CreateTags"]
      Resource = ["${local.ec2}:instance/*", "${local.ec2}:volume/*"]
      Condition = {
        StringEquals = { "ec2:CreateAction" = "RunInstances" }
      }
    },
    {
      Sid      = "EndAndRetagOwn"
      Effect   = "Allow"
      Action   = ["ec2:TerminateInstances", "ec2:CreateTags"]
      Resource = ["${local.ec2}:instance/*"]
      Condition = {
        StringEquals = { "ec2:ResourceTag/ray-cluster-name" = var.name }
      }
    },
    {
      Sid      = "GiveWorkersTheirRole"
      Effect   = "Allow"
      Action   = ["iam:PassRole"]
      Resource = [aws_iam_role.worker.arn]
      Condition = {
        StringEquals = { "iam:PassedToService" = "ec2.amazonaws.com" }
      }
    },
  ]
}
