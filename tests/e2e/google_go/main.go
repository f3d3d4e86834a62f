// Calls google.longrunning.Operations through Google's own Go client, one call a run:
//
//	google_go ADDRESS get|poll|wait|wait-operation|cancel|delete|list NAME
//
// What came of it is printed as JSON: {"done", "operation", "response", "metadata"}, for list
// {"names"}, and for an error {"code", "message", "reason"}.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"cloud.google.com/go/longrunning"
	autogen "cloud.google.com/go/longrunning/autogen"
	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"github.com/googleapis/gax-go/v2/apierror"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	patience     = 60 * time.Second
	pollInterval = 20 * time.Millisecond
	pageSize     = 2
)

type result map[string]any

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: google_go ADDRESS CALL NAME")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	said, err := call(ctx, os.Args[1], os.Args[2], os.Args[3])
	if err != nil {
		said = described(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(said); err != nil {
		panic(err)
	}
}

func call(ctx context.Context, address, method, name string) (result, error) {
	client, err := autogen.NewOperationsClient(ctx,
		option.WithEndpoint(address),
		option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	switch method {
	case "list":
		return list(ctx, client, name)
	case "delete":
		return result{}, client.DeleteOperation(ctx, &longrunningpb.DeleteOperationRequest{Name: name})
	case "wait-operation":
		sayWaiting()
		got, err := client.WaitOperation(ctx, &longrunningpb.WaitOperationRequest{
			Name: name, Timeout: durationpb.New(patience)})
		if err != nil {
			return nil, err
		}
		return result{"done": got.Done, "operation": got.Name}, nil
	}
	got, err := client.GetOperation(ctx, &longrunningpb.GetOperationRequest{Name: name})
	if err != nil {
		return nil, err
	}
	operation := longrunning.InternalNewOperation(client, got)
	var response structpb.Struct
	switch method {
	case "get":
	case "poll":
		err = operation.Poll(ctx, &response)
	case "wait":
		sayWaiting()
		err = operation.WaitWithInterval(ctx, &response, pollInterval)
	case "cancel":
		err = operation.Cancel(ctx)
	default:
		return nil, fmt.Errorf("there is no call %q", method)
	}
	if err != nil {
		return nil, err
	}
	said := result{"done": operation.Done(), "operation": operation.Name(), "response": response.AsMap()}
	var metadata structpb.Struct
	switch err := operation.Metadata(&metadata); {
	case err == nil:
		said["metadata"] = metadata.AsMap()
	case !errors.Is(err, longrunning.ErrNoMetadata):
		return nil, err
	}
	return said, nil
}

// Whoever started this may now end the operation.
func sayWaiting() {
	fmt.Fprintln(os.Stderr, "waiting")
}

func list(ctx context.Context, client *autogen.OperationsClient, parent string) (result, error) {
	request := &longrunningpb.ListOperationsRequest{Name: parent, PageSize: pageSize}
	names := []string{}
	operations := client.ListOperations(ctx, request)
	for {
		operation, err := operations.Next()
		if errors.Is(err, iterator.Done) {
			return result{"names": names}, nil
		}
		if err != nil {
			return nil, err
		}
		names = append(names, operation.Name)
	}
}

func described(err error) result {
	said := result{"message": err.Error()}
	if failure, ok := apierror.FromError(err); ok {
		said = result{
			"code":    failure.GRPCStatus().Code().String(),
			"message": failure.GRPCStatus().Message(),
			"reason":  failure.Reason(),
		}
	}
	return said
}
