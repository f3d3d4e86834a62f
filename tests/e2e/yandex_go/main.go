// Follows an operation through Yandex's SDK for Go, version 1:
//
//	yandex_go ADDRESS wait|cancel ID AUTHORITY
//
// AUTHORITY is a PEM file. What came of it is printed as JSON: {"response"}, or {"code", "message",
// "reason"} of an error. Of the SDK it has what follows operations alone: the rest takes minutes to build,
// and that of the versions 0.45.0 and 0.46.0 does not compile.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"time"

	pb "github.com/yandex-cloud/go-genproto/yandex/cloud/operation"
	"github.com/yandex-cloud/go-sdk/operation"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	_ "google.golang.org/protobuf/types/known/structpb" // what an operation may answer with
)

const (
	patience     = 60 * time.Second
	pollInterval = 20 * time.Millisecond
)

type result map[string]any

func main() {
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: yandex_go ADDRESS CALL ID AUTHORITY")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	said, err := call(ctx, os.Args[1], os.Args[2], os.Args[3], os.Args[4])
	if err != nil {
		said = described(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(said); err != nil {
		panic(err)
	}
}

func call(ctx context.Context, address, method, id, authority string) (result, error) {
	trusted, err := os.ReadFile(authority)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(trusted)
	connection, err := grpc.NewClient(address,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots})))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	client := pb.NewOperationServiceClient(connection)
	got, err := client.Get(ctx, &pb.GetOperationRequest{OperationId: id})
	if err != nil {
		return nil, err
	}
	followed := operation.New(client, got)
	if method == "cancel" {
		if err := followed.Cancel(ctx); err != nil {
			return nil, err
		}
	} else {
		fmt.Fprintln(os.Stderr, "waiting") // whoever started this may now end the operation
		if err := followed.WaitInterval(ctx, pollInterval); err != nil {
			return nil, err
		}
	}
	said := result{}
	if response, err := followed.Response(); err != nil {
		return nil, err
	} else if response != nil {
		said["response"] = json.RawMessage(protojson.Format(response))
	}
	return said, nil
}

func described(err error) result {
	failure, ok := status.FromError(err)
	if !ok {
		return result{"message": err.Error()}
	}
	said := result{"code": failure.Code(), "message": failure.Message()}
	for _, detail := range failure.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			said["reason"] = info.Reason
		}
	}
	return said
}
