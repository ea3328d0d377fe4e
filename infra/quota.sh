#!/usr/bin/env bash
# Says before the first run whether the account may start what the worker groups ask for. Exits 1 if it may not.
#
#   infra/quota.sh infra/stacks/aws-ec2 -var-file=my.tfvars
#
# A new account may start no GPU at all: quotas count vCPUs, a family and market at a time, and a request takes from
# minutes to days. Asks AWS for vCPUs of each type, zones that have it, quotas, and the spot role. Changes nothing.
set -euo pipefail
[[ -d ${1:-} ]] || { echo "quota: name the folder of a stack, such as infra/stacks/aws-ec2" >&2; exit 2; }
stack=$1
shift
export AWS_PAGER='' TF_VAR_ray_token=${TF_VAR_ray_token:-no-token-is-needed-to-look-at-the-variables}

value() { terraform -chdir="$stack" console "${arguments[@]}" <<<"$1" | sed '/^<<EOT$/d; /^EOT$/d; s/^"\(.*\)"$/\1/'; }
arguments=("$@")
AWS_REGION=$(value var.region)
export AWS_REGION AWS_DEFAULT_REGION=$AWS_REGION
zones=$(value 'join(" ", var.availability_zones)')
# group, number of machines, market (fallback counts for both), types
groups=$(value 'join("\n", [for g in var.worker_groups : join(" ", concat([g.name, g.max, try(g.spot, false) ? (try(g.on_demand_fallback, true) ? "both" : "spot") : "on-demand"], g.instance_types))])')

quota_code() { # quota_code TYPE MARKET
    case $2:$1 in
        spot:p5* | spot:p6*) echo L-C4BD4855 ;;
        spot:p*) echo L-7212CCBC ;;
        spot:g*) echo L-3819A6DF ;;
        spot:*) echo L-34B43A08 ;;
        on-demand:p*) echo L-417A185B ;;
        on-demand:g*) echo L-DB2E81BA ;;
        on-demand:*) echo L-1216C47A ;;
    esac
}

declare -A need # by quota: the largest type of each group, times its machines
short=0
while read -r group max market types; do
    for m in ${market/both/spot on-demand}; do
        declare -A largest=()
        for type in $types; do
            vcpus=$(aws ec2 describe-instance-types --instance-types "$type" --output text --query 'InstanceTypes[0].VCpuInfo.DefaultVCpus')
            code=$(quota_code "$type" "$m")
            ((vcpus > ${largest[$code]:-0})) && largest[$code]=$vcpus
        done
        for code in "${!largest[@]}"; do need[$code]=$((${need[$code]:-0} + largest[$code] * max)); done
        unset largest
    done
    for type in $types; do
        offered=$(aws ec2 describe-instance-type-offerings --location-type availability-zone --output text \
            --filters "Name=instance-type,Values=$type" --query 'InstanceTypeOfferings[].Location')
        found=0
        for zone in $zones; do [[ $offered == *"$zone"* ]] && found=1; done
        if [[ $zones && $found == 0 ]]; then
            echo "$group: no zone of $zones has $type; those that have it: ${offered:-none of $AWS_REGION}"
            short=1
        fi
    done
done <<<"$groups"

for code in "${!need[@]}"; do
    have=$(aws service-quotas get-service-quota --service-code ec2 --quota-code "$code" --output text --query 'Quota.Value')
    label=$(aws service-quotas get-service-quota --service-code ec2 --quota-code "$code" --output text --query 'Quota.QuotaName')
    if ((${have%.*} < need[$code])); then
        echo "$label: ${have%.*} vCPUs, the groups ask for ${need[$code]}; ask for them with"
        echo "    aws service-quotas request-service-quota-increase --region $AWS_REGION --service-code ec2 --quota-code $code --desired-value ${need[$code]}"
        short=1
    else
        echo "$label: ${have%.*} vCPUs, enough for ${need[$code]}"
    fi
done
if [[ $groups == *spot* || $groups == *both* ]] && [[ -z $(aws iam list-roles --output text \
    --path-prefix /aws-service-role/spot.amazonaws.com/ --query 'Roles[].RoleName') ]]; then
    echo "the account has never used spot; make its role once: aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"
    short=1
fi
exit $short
