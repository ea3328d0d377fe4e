# Four L40S for teachers, at spot prices where there are any, and four in one machine for the student. Copy, edit, then
#   TF_VAR_ray_token=$(cat ~/.ray/lab-token) terraform apply -var-file=my.tfvars
name               = "lab"
region             = "eu-central-1"
availability_zones = ["eu-central-1a", "eu-central-1b"]
bucket             = "your-lab-pathryoshka"
ami_id             = "ami-0123456789abcdef0"
image              = "111122223333.dkr.ecr.eu-central-1.amazonaws.com/pathryoshka@sha256:0000000000000000000000000000000000000000000000000000000000000000"
monthly_budget_usd = 1000
alert_emails       = ["you@your-lab.org"]
max_gpus           = 8

worker_groups = [
  {
    name           = "teacher-l40s"
    role           = "teacher"
    instance_types = ["g6e.2xlarge", "g6e.4xlarge"] # 8 and 16 vCPUs, 64 and 128 GiB: what is said below fits both
    cpus           = 6
    memory_gib     = 52
    gpus           = 1
    accelerator    = "L40S"
    max            = 4
    spot           = true # and on demand where there is no spot
  },
  {
    name           = "student-l40s"
    role           = "student"
    instance_types = ["g6e.12xlarge"] # 48 vCPUs, 384 GiB
    cpus           = 44
    memory_gib     = 340
    gpus           = 4
    accelerator    = "L40S"
    max            = 1
  },
]
