#!/usr/bin/env bash
# Ends everything that bills: head, workers, then what Terraform made. Prints what is left, and exits 1 if that bills.
#
#   infra/teardown.sh infra/stacks/aws-ec2 -var-file=my.tfvars
#
#   --name NAME --region REGION   of a cluster whose Terraform outputs are gone
#   --delete-bucket               the data too; asks for the bucket's name
#   --workers-only                stop the head and end the workers, keep the rest (no GPU bills any more)
#   --yes                         ask nothing
#
# Workers are the autoscaler's and in no Terraform state: `terraform destroy` alone would leave them running, billing,
# and then fail on their subnets. With the AWS CLI and not boto3: whoever tears down at night has the CLI (it is what
# reaches the head), and perhaps no Python environment.
set -euo pipefail

stack='' name='' region='' delete_bucket='' workers_only='' yes='' arguments=()
while (($#)); do
    case $1 in
        --name) name=$2; shift ;;
        --region) region=$2; shift ;;
        --delete-bucket) delete_bucket=1 ;;
        --workers-only) workers_only=1 ;;
        --yes) yes=1 ;;
        -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
        -*) arguments+=("$1") ;;
        *) stack=$1 ;;
    esac
    shift
done
[[ -d $stack ]] || { echo "teardown: name the folder of a stack, such as infra/stacks/aws-ec2" >&2; exit 2; }
for tool in aws terraform; do
    command -v $tool >/dev/null || { echo "teardown: $tool is not on PATH" >&2; exit 2; }
done

output() { terraform -chdir="$stack" output -raw "$1" 2>/dev/null | grep -v '^[[:space:]]*[│╷╵]' || true; }
name=${name:-$(output name)} region=${region:-$(output region)} bucket=$(output bucket)
[[ $name && $region ]] || { echo "teardown: $stack has no outputs; say --name and --region" >&2; exit 2; }
export AWS_REGION=$region AWS_DEFAULT_REGION=$region AWS_PAGER=''

ask() { # ask QUESTION ANSWER
    [[ $yes ]] && return
    read -r -p "$1 " answer
    [[ $answer == "$2" ]] || { echo "teardown: nothing done" >&2; exit 1; }
}

instances() { # instances KIND STATES: ids on one line
    aws ec2 describe-instances --output text --query 'Reservations[].Instances[].InstanceId' --filters \
        "Name=tag:ray-cluster-name,Values=$name" "Name=tag:ray-node-type,Values=$1" "Name=instance-state-name,Values=$2"
}

ask "End the cluster $name in $region? Jobs on it die. Type $name:" "$name"

# The head first, or its autoscaler would replace what is ended. Stopped is enough: destroy deletes it.
read -ra head < <(instances head pending,running,stopping) || true
if ((${#head[@]})); then
    echo "stopping the head: ${head[*]}"
    aws ec2 stop-instances --instance-ids "${head[@]}" >/dev/null
    aws ec2 wait instance-stopped --instance-ids "${head[@]}"
fi
# Again until none is there: a request that was on its way when the head stopped still becomes an instance.
while read -ra workers < <(instances worker pending,running,stopping,stopped) && ((${#workers[@]})); do
    echo "ending workers: ${workers[*]}"
    aws ec2 terminate-instances --instance-ids "${workers[@]}" >/dev/null
    aws ec2 wait instance-terminated --instance-ids "${workers[@]}"
done
echo "no worker of $name is left"
[[ $workers_only ]] && exit 0

# A bucket with data in it outlives its cluster, unless it is named to be deleted.
if [[ $bucket && $delete_bucket ]]; then
    ask "Delete s3://$bucket with every version of every object? Type $bucket:" "$bucket"
    for kind in Versions DeleteMarkers; do
        while ids=$(aws s3api list-object-versions --bucket "$bucket" --max-items 1000 --output json \
            --query "{Objects: ${kind}[].{Key: Key, VersionId: VersionId}, Quiet: \`true\`}") && [[ $ids == *VersionId* ]]; do
            aws s3api delete-objects --bucket "$bucket" --delete "$ids" >/dev/null
        done
    done
elif terraform -chdir="$stack" state list 2>/dev/null | grep -q '^module\.storage\.'; then
    terraform -chdir="$stack" state rm module.storage >/dev/null
    echo "s3://$bucket is kept, with its data, and bills for what lies in it; adopt_bucket = true takes it up again"
fi

# nothing is sent on the way down, so any token will do
export TF_VAR_ray_token=${TF_VAR_ray_token:-no-token-is-needed-to-destroy-a-cluster}
terraform -chdir="$stack" destroy -input=false -auto-approve "${arguments[@]}"

tagged=("Name=tag:ray-cluster-name,Values=$name")
left=$(
    aws ec2 describe-instances --output text --query 'Reservations[].Instances[].[InstanceId, InstanceType, State.Name]' \
        --filters "${tagged[@]}" Name=instance-state-name,Values=pending,running,stopping,stopped
    aws ec2 describe-volumes --output text --query 'Volumes[].[VolumeId, Size, State]' --filters "${tagged[@]}"
    aws ec2 describe-nat-gateways --output text --query 'NatGateways[].[NatGatewayId, State]' \
        --filter "${tagged[@]}" Name=state,Values=pending,available,failed
    aws ec2 describe-addresses --output text --query 'Addresses[].[AllocationId, PublicIp]' --filters "${tagged[@]}"
    aws ec2 describe-vpc-endpoints --output text --query 'VpcEndpoints[].[VpcEndpointId, State]' --filters "${tagged[@]}" \
        Name=vpc-endpoint-state,Values=pending,available
)
[[ $left ]] && { printf 'still there, and billing:\n%s\n' "$left" >&2; exit 1; }
echo "nothing of $name bills any more${bucket:+$([[ $delete_bucket ]] || echo ", but s3://$bucket")}"
